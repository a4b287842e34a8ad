#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {

/// Where the tables of a sound image are.
struct Places {
  static constexpr std::uint64_t kOffsetBits = 0x00fffffffffffe00;

  explicit Places(const std::string& path) {
    cluster = std::uint64_t{1} << read_number<std::uint32_t>(path, header_field::kClusterBits);
    l1 = read_number<std::uint64_t>(path, header_field::kL1Offset);
    l1_entries = read_number<std::uint32_t>(path, header_field::kL1Size);
    l2 = read_number<std::uint64_t>(path, l1) & kOffsetBits;
    refcount_table = read_number<std::uint64_t>(path, header_field::kRefcountTableOffset);
    std::uint64_t at = 72;
    if (read_number<std::uint32_t>(path, header_field::kVersion) == 3)
      at = read_number<std::uint32_t>(path, header_field::kHeaderLength);
    extensions = at;
    for (std::uint32_t type = 0; (type = read_number<std::uint32_t>(path, at)) != 0;
         at += 8 + round_up(read_number<std::uint32_t>(path, at + 4), 8))
      if (type == 0x23852875)
        bitmaps_extension = at;
    if (bitmaps_extension != 0) {
      directory = read_number<std::uint64_t>(path, bitmaps_extension + 24);
      directory_size = read_number<std::uint64_t>(path, bitmaps_extension + 16);
      bitmap_table = read_number<std::uint64_t>(path, directory);
    }
  }

  std::uint64_t cluster = 0;
  std::uint64_t l1 = 0;
  std::uint32_t l1_entries = 0;
  std::uint64_t l2 = 0;  // of guest offset 0
  std::uint64_t refcount_table = 0;
  std::uint64_t extensions = 0;         // the first header extension
  std::uint64_t bitmaps_extension = 0;  // 0: none
  std::uint64_t directory = 0;
  std::uint64_t directory_size = 0;
  std::uint64_t bitmap_table = 0;  // of the first bitmap
};

/// Makes a small image of one kind: data, zeros, holes, compressed clusters and, in version 3, two
/// bitmaps, of which b0 has bits set and clear and b1 all set.
inline void make_varied_image(const std::string& path, const std::string& options,
                              std::uint64_t size = 256 * kKiB) {
  const TempFolder folder;
  const std::string source = folder / "source.raw";
  create_image(source, "raw", size);
  qemu_io(source, "raw",
          {fmt::format("write -q -P 1 0 {}", size / 4),
           fmt::format("write -q -P 2 {} {}", size / 2, size / 8)});
  qemu_img({"convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, source, path});
  const bool version_2 = options.find("compat=0.10") != std::string::npos;
  if (!version_2)
    qemu_img({"bitmap", "--add", "-g", "512", path, "b0"});
  qemu_io(path, "qcow2",
          {fmt::format("write -q -P 3 {} 4096", size / 16),
           fmt::format("write -q -P 4 {} 512", size / 2),
           fmt::format("write -q -z {} {}", size / 4, size / 8),
           fmt::format("write -q -P 5 {} 1024", size - 1024)});
  if (!version_2) {
    qemu_img({"bitmap", "--add", "-g", "64k", path, "b1"});
    qemu_io(path, "qcow2", {"discard -q 0 512"});
  }
}

inline const std::vector<std::string>& kinds() {
  static const std::vector<std::string> options{
      "cluster_size=512",
      "cluster_size=512,compat=0.10",
      "cluster_size=512,compression_type=zstd",
      "cluster_size=4096,refcount_bits=64",
      "cluster_size=16384,extended_l2=on",
  };
  return options;
}

inline std::vector<std::byte> contents_of(const std::string& path) {
  const TempFolder folder;
  qemu_img({"convert", "-f", "qcow2", "-O", "raw", path, folder / "contents.raw"});
  return read_file(folder / "contents.raw");
}

}  // namespace nbdelta::testing
