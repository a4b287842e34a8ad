#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "sim/file_image.hpp"
#include "sim/qcow2_header_file.hpp"
#include "sim/qcow2_refcounts.hpp"

namespace nbdelta::sim {

/// A qcow2 image (version 3) in a file. Its tables are in memory; what a flush has not written is
/// lost with the process, as with QEMU. Clusters of 4 KiB and more; no compressed ones,
/// subclusters, internal snapshots, external data, encryption; no other size than it was made with.
///
/// Invariants
/// 1. An entry that leads to a cluster is in the file only after the cluster's refcount.
/// 2. A cluster that is a disk's has what the guest reads, but for one that is marked as zero.
class Qcow2FileImage final : public FileImage {
 public:
  /// Reads all tables. Throws Error with the file and the reason.
  Qcow2FileImage(File file, ForeignGranules& foreign);

  std::string format() const override { return "qcow2"; }
  std::uint64_t granules() const override { return granules_; }
  void resize(std::uint64_t granules) override;
  std::uint64_t cluster() const override { return cluster_granules_; }
  Held held(std::uint64_t granule) const override;
  WriteNumber read(std::uint64_t granule) const override;
  void write(std::uint64_t granule, WriteNumber number) override;
  /// Clusters of which every granule was zeroed one after the other become zero clusters; they keep
  /// their place in the file.
  void write_zero(std::uint64_t granule) override;
  void flush() override;
  std::uint64_t allocated() const override { return refcounts_.end(); }
  std::optional<BackingFile> backing() const override { return backing_; }
  void set_backing(const BackingFile& backing) override;
  const std::vector<StoredBitmap>& bitmaps() const override { return bitmaps_; }
  void set_bitmaps(std::vector<StoredBitmap> bitmaps) override;

 private:
  /// What has changed of a table; `first` > `last`: nothing.
  struct Table {
    std::uint64_t offset = 0;  // 0: none yet
    std::vector<std::uint64_t> entries;
    std::size_t first_dirty = SIZE_MAX;
    std::size_t last_dirty = 0;
  };

  void read_tables();
  std::uint64_t entry(std::uint64_t cluster) const;
  void set_entry(std::uint64_t cluster, std::uint64_t entry);
  std::uint64_t place_of(std::uint64_t granule) const;
  void mark_dirty(Table& table, std::size_t index);
  void write_dirty(Table& table);

  Qcow2HeaderFile header_;
  Qcow2Refcounts refcounts_;
  std::uint64_t cluster_size_;
  std::uint64_t cluster_granules_;
  std::uint64_t granules_;
  Table l1_;
  std::vector<Table> l2_;               // one an L1 entry; without entries where there is none
  std::optional<BackingFile> backing_;  // by its absolute path
  std::vector<StoredBitmap> bitmaps_;
  std::unordered_map<std::uint64_t, std::vector<bool>> zeroed_;  // granules, of data clusters
};

}  // namespace nbdelta::sim
