#pragma once

#include <boost/json/value.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/process.hpp"

namespace nbdelta::testing {

/// `qemu-img ARGUMENTS`; throws Error unless it exits with 0. Returns stdout.
std::string qemu_img(const Command& arguments);

/// `qemu-img create -f FORMAT [-o OPTIONS] FILE SIZE`, OPTIONS as in "cluster_size=4k,compat=0.10".
void create_image(const std::string& path, const std::string& format, std::uint64_t size,
                  const std::string& options = {});

/// The same with a backing file; its size is the backing file's where `size` is 0.
void create_overlay(const std::string& path, const std::string& backing,
                    const std::string& backing_format, std::uint64_t size = 0,
                    const std::string& options = {});

/// Runs qemu-io's commands ("write -P 7 0 64k", "write -z 1M 64k", "discard 0 4k") one after the
/// other on an image. Throws Error where one fails. `options` come before the file's name.
std::string qemu_io(const std::string& path, const std::string& format,
                    const std::vector<std::string>& commands, const Command& options = {});

/// `qemu-img compare`: "" where both have the same contents, otherwise what it says. Either may
/// be an NBD URI with format "raw".
std::string difference(const std::string& a, const std::string& a_format, const std::string& b,
                       const std::string& b_format);

/// `qemu-img check`: "" where it finds nothing to say, otherwise what it says.
std::string check_complaints(const std::string& path);

/// One extent of `qemu-img map --output=json`.
struct MapEntry {
  std::uint64_t start = 0;
  std::uint64_t length = 0;
  std::uint64_t depth = 0;
  bool present = false;
  bool zero = false;
  bool data = false;
};
std::vector<MapEntry> qemu_map(const std::string& path, const std::string& format);

/// One extent of `nbdinfo --map=CONTEXT --json`.
struct NbdExtent {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  std::uint64_t type = 0;

  bool operator==(const NbdExtent&) const = default;
};
/// Neighbours of one type are joined.
std::vector<NbdExtent> nbdinfo_map(const std::string& uri,
                                   const std::string& context = "base:allocation");

/// `qemu-img info --output=json`.
boost::json::value image_info(const std::string& path, const std::string& format);

}  // namespace nbdelta::testing
