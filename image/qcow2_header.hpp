#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "image/qcow2_format.hpp"

namespace nbdelta::image {

/// What the header and its extensions say, checked: every offset is aligned and, with its table,
/// inside the file; no two of the fixed tables overlap; nothing in it needs a feature that this
/// reader does not have.
struct Qcow2Header {
  unsigned version = 3;
  unsigned cluster_bits = 16;
  std::uint64_t size = 0;  // virtual size, bytes
  std::uint64_t l1_offset = 0;
  std::uint32_t l1_entries = 0;
  bool dirty_refcounts = false;
  bool extended_l2 = false;
  std::uint32_t snapshots = 0;  // internal ones
  qcow2::Compression compression = qcow2::Compression::zlib;

  std::string backing_name;    // empty: none
  std::string backing_format;  // empty: not recorded
  bool external_data = false;
  std::string data_file_name;

  struct Bitmaps {
    std::uint32_t count = 0;
    std::uint64_t directory_offset = 0;
    std::uint64_t directory_size = 0;
  };
  std::optional<Bitmaps> bitmaps;
  bool bitmaps_stale = false;  // there are some, but a writer that does not know them came by

  /// A range of the file that holds a table whose place the header gives.
  struct Region {
    const char* what;
    std::uint64_t offset;
    std::uint64_t length;
  };
  /// The fixed tables; those without bytes are left out.
  std::vector<Region> regions;

  std::uint64_t cluster_size() const { return std::uint64_t{1} << cluster_bits; }
  std::size_t l2_entry_size() const { return extended_l2 ? 16 : 8; }
  std::uint64_t l2_entries() const { return cluster_size() / l2_entry_size(); }

  /// The region that [offset, offset + length) touches, if any.
  const Region* region_at(std::uint64_t offset, std::uint64_t length) const;
};

/// Reads and checks. Throws Error that names the file, the field and its value.
Qcow2Header read_qcow2_header(const File& file);

/// Whether the file begins as a qcow2 image of whatever version does. Throws Error where it cannot
/// be read.
bool has_qcow2_magic(const File& file);

}  // namespace nbdelta::image
