#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image/extent.hpp"
#include "image/metadata.hpp"
#include "image/qcow2_header.hpp"

namespace nbdelta::image {

/// A persistent dirty bitmap of a qcow2 image (qcow2 specification, "Bitmaps extension"). Its
/// contents are read from the file as they are asked for.
class DirtyBitmap {
 public:
  /// One entry of the bitmap directory.
  struct Info {
    std::string name;
    std::uint64_t granularity = 0;  // bytes of the virtual disk that one bit stands for
    bool in_use = false;            // not closed properly: the contents cannot be trusted
    bool enabled = false;           // flag "auto": records writes while a guest runs
    bool readable = true;           // false: has extra data that this version does not know
    std::uint64_t table_offset = 0;
    std::uint32_t table_entries = 0;
  };

  /// Refuses (Error) a bitmap that is in use, has unknown extra data, or whose table's size does
  /// not fit the disk. `metadata` and `header` must outlive the bitmap.
  DirtyBitmap(Info info, const MetadataReader& metadata, const Qcow2Header& header);

  const Info& info() const { return info_; }

  /// Extents of state `data` (the bit is set) or `unchanged`.
  void for_each_extent(std::uint64_t offset, std::uint64_t length, const ExtentSink& sink) const;

 private:
  bool walk_table_entry(std::uint64_t entry, std::uint64_t start, std::uint64_t from,
                        std::uint64_t to, MetadataWindow& window, const ExtentSink& sink) const;
  void check_table_entry(std::uint64_t entry, std::uint64_t guest) const;

  Info info_;
  const MetadataReader* metadata_;
  const Qcow2Header* header_;
};

/// All bitmaps that the directory lists. Throws Error that names the entry which is damaged.
std::vector<DirtyBitmap::Info> read_bitmap_directory(const File& file,
                                                     const Qcow2Header::Bitmaps& place,
                                                     std::uint64_t cluster_size);

}  // namespace nbdelta::image
