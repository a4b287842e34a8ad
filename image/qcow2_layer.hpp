#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "image/block_cache.hpp"
#include "image/data_file.hpp"
#include "image/dirty_bitmap.hpp"
#include "image/layer.hpp"
#include "image/metadata.hpp"
#include "image/qcow2_header.hpp"

namespace nbdelta::image {

/// A qcow2 image, without what is behind it. No table is held in memory: L1 and L2 are read through
/// the metadata cache, or past it by a walk, as bitmaps are; decompressed clusters through the
/// other.
///
/// Invariants
/// 1. Metadata comes from `files_.metadata`; data from `files_.data` where that is open, else from
///    `files_.metadata` too.
/// 2. No offset from the disk is used before it was found aligned, inside its file, and outside
///    the header's fixed tables.
class Qcow2Layer final : public Layer {
 public:
  /// What the layer reads from; `data` may be the same file opened with O_DIRECT, or the external
  /// data file, or empty where `metadata` holds the data too.
  struct Files {
    File metadata;
    File data;
    std::size_t direct_alignment = 0;  // of `data` (of `metadata` where `data` is empty)
  };

  /// Checks the L1 table. `caches` must outlive the layer; `source` is this layer's in both.
  /// Throws Error.
  Qcow2Layer(Files files, Qcow2Header header, BlockCache& metadata_cache,
             BlockCache& decompressed_cache, std::uint64_t source);

  const std::string& name() const override { return files_.metadata.name(); }
  std::uint64_t size() const override { return header_.size; }
  Run run_at(std::uint64_t offset, std::uint64_t limit) const override;
  Run run_at(std::uint64_t offset, std::uint64_t limit, LayerWalk& walk) const override;
  void read(std::span<std::byte> out, std::uint64_t offset, const Run& run) const override;
  const File& data_file() const override { return data_.file(); }
  void will_need(const Run& run) const override;

  /// Bytes of the disk whose L2 entries are read together.
  std::uint64_t bytes_of_metadata_block() const {
    return std::min(MetadataReader::kBlock / header_.l2_entry_size(), header_.l2_entries())
           << header_.cluster_bits;
  }

  /// Tells the kernel that the L2 entry of `offset` will be read soon, unless a walk comes to it
  /// from the one before. Offsets ascend; `announced` is for these calls only.
  void entry_will_be_read(std::uint64_t offset, LayerWalk& announced) const;

  const Qcow2Header& header() const { return header_; }

  /// All persistent bitmaps, as the directory lists them. Throws Error where the directory is
  /// damaged.
  std::vector<DirtyBitmap::Info> bitmaps() const;

  /// The bitmap of that name, ready to be read. Throws Error where there is none (its message lists
  /// those that there are), or where it cannot be trusted; see DirtyBitmap.
  DirtyBitmap bitmap(std::string_view name) const;

  /// The same for one of those that bitmaps() returned.
  DirtyBitmap bitmap(DirtyBitmap::Info info) const;

 private:
  void check_l1() const;
  std::uint64_t check_l2_offset(std::uint64_t l1_entry, std::uint64_t guest) const;
  Run run_without_l2(std::uint64_t guest, std::uint64_t limit,
                     const MetadataReader::Entries& l1) const;
  /// `entries(offset, count, table)` reads a table.
  template <class Entries>
  Run run_at(std::uint64_t offset, std::uint64_t limit, Entries entries) const;
  Run run_in_l2(std::uint64_t l2_table, const MetadataReader::Entries& entries, std::uint64_t guest,
                std::uint64_t limit) const;
  Run piece_of_cluster(std::uint64_t descriptor, std::uint64_t guest) const;
  Run piece_of_subclusters(std::uint64_t descriptor, std::uint64_t bitmap,
                           std::uint64_t guest) const;
  void check_data_offset(std::uint64_t host, std::uint64_t guest) const;
  void decompress(const struct CompressedCluster& place, std::uint64_t guest,
                  std::span<std::byte> cluster) const;

  std::uint64_t offset_in_cluster(std::uint64_t guest) const {
    return guest & (header_.cluster_size() - 1);
  }

  Files files_;
  Qcow2Header header_;
  MetadataReader metadata_;
  DataFile data_;
  BlockCache& decompressed_;
  std::uint64_t source_;
};

}  // namespace nbdelta::image
