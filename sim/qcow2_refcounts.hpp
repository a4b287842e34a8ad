#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "base/file.hpp"
#include "sim/qcow2_header_file.hpp"

namespace nbdelta::sim {

/// Which clusters of a qcow2 file are used (qcow2 specification, "Host cluster management"), in
/// memory until flush(). For one thread.
///
/// Invariants
/// 1. After flush() every cluster with a count is told in the file, refcount blocks and table
///    included.
/// 2. Of what was allocated, the other tables are written after flush(): so a crash leaves unused
///    clusters at worst.
class Qcow2Refcounts {
 public:
  /// Reads all. Throws Error where the counts have not 16 bits, or do not fit the file.
  Qcow2Refcounts(const File& file, const image::qcow2::Header& header);

  /// A run of free clusters, zeroed or past the file's end before; its offset. Throws Error
  /// (ENOSPC and others of the file's).
  std::uint64_t allocate(std::uint64_t clusters = 1);
  /// Nothing in the file may lead to them any more.
  void free(std::uint64_t offset, std::uint64_t clusters);

  /// Writes what has changed; also the header, where the table has moved.
  void flush(Qcow2HeaderFile& header);

  /// Where the last used cluster ends.
  std::uint64_t end() const { return used_clusters_ * cluster_size_; }

 private:
  std::uint64_t counts_per_block() const { return cluster_size_ / sizeof(be16); }
  void set(std::uint64_t cluster, std::uint16_t count);
  void place_blocks();
  void place_table();
  void write_dirty();
  void write_block(std::uint64_t block);

  const File* file_;
  std::uint64_t cluster_size_;
  std::uint64_t table_offset_;
  std::uint64_t table_clusters_;
  std::vector<std::uint64_t> blocks_;  // offsets; 0: none yet
  std::vector<std::uint16_t> counts_;
  std::set<std::uint64_t> dirty_blocks_;
  bool table_dirty_ = false;
  std::uint64_t first_free_ = 0;  // none before it
  std::uint64_t used_clusters_ = 0;
};

}  // namespace nbdelta::sim
