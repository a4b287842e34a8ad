#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>

#include "base/file.hpp"
#include "image/disk.hpp"
#include "image/extent_map.hpp"

namespace nbdelta::image {

/// The backing file as it goes into the header: taken by readers as relative to the overlay's
/// folder.
struct Backing {
  std::string name;  // at most 1023 bytes; empty: none
  Format format = Format::qcow2;
};

/// Writes a new qcow2 image (version 3, 16-bit refcounts) whose allocated clusters are known
/// beforehand: every cluster's place is settled first; then the tables are written, and data is
/// filled in, from any thread in any order; the header goes last, so that an unfinished file is no
/// qcow2 image.
///
/// Clusters of the map in state `data` are allocated, one after the other in guest order; `zero`
/// become zero clusters; `unchanged` and `hole` stay unallocated.
class Qcow2Overlay {
 public:
  /// The cluster size that suits a map: 64 KiB, or less (at least 4 KiB) where the map holds
  /// `unchanged` extents with finer bounds and the L1 table stays within QEMU's limit (32 MiB).
  static std::uint64_t suitable_cluster_size(const ExtentMap& map);

  /// `file` is open for reading and writing and is truncated; `map` must have been widened to
  /// `cluster_size` (widen_to_clusters); both must outlive the object. A virtual size that is no
  /// multiple of 512 is rounded up in the header, as QEMU would otherwise cut the tail.
  Qcow2Overlay(const File& file, const ExtentMap& map, std::uint64_t cluster_size,
               const Backing& backing);
  ~Qcow2Overlay();

  /// Writes L1, L2 and refcounts; once, by any thread, also while data is filled in. Throws Error,
  /// of ECANCELED soon after `stop` was requested.
  void write_tables(const std::stop_token& stop = {}) const;

  /// Fills [offset, offset + data.size()) of the virtual disk; parts that are not in state `data`
  /// are left out. Safe to call from several threads.
  void write(std::span<const std::byte> data, std::uint64_t offset) const;

  /// Fills what comes after the first `data_before` bytes in state `data` with the next ones.
  void write_packed(std::span<const std::byte> data, std::uint64_t data_before) const;

  /// As write(), by the kernel; see File::copy_from().
  bool copy_from(const File& from, std::uint64_t from_offset, std::uint64_t length,
                 std::uint64_t offset) const;

  /// Once everything was written, the tables too: fsync, header, fsync.
  void finish() const;

  /// Length of the finished file, for a map that has been widened to `cluster_size`.
  static std::uint64_t file_size(const ExtentMap& map, std::uint64_t cluster_size);

 private:
  struct Layout;

  /// Calls `body(guest offset, length, host offset)` for each part in state `data`, until it
  /// returns false.
  template <class Body>
  bool for_each_place(std::uint64_t offset, std::uint64_t length, Body body) const;

  const File* file_;
  const ExtentMap* map_;
  std::uint64_t data_start_ = 0;  // host offset of the first data cluster
  std::string header_;            // the first cluster, up to its used length
  std::unique_ptr<const Layout> layout_;
};

}  // namespace nbdelta::image
