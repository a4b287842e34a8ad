#include "sim/qcow2_file_image.hpp"

#include <algorithm>
#include <span>
#include <utility>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "image/permitted_file.hpp"
#include "image/qcow2_header.hpp"
#include "sim/qcow2_bitmaps.hpp"

namespace nbdelta::sim {

using namespace image::qcow2;

namespace {

/// QEMU's words for what is no qcow2 image at all.
const File& checked(const File& file) {
  be32 magic = 0;
  if (file.size() < sizeof magic)
    fail(EINVAL, "Image is not in qcow2 format");
  file.read_exactly_at(std::as_writable_bytes(std::span(&magic, 1)), 0);
  if (magic != kMagic)
    fail(EINVAL, "Image is not in qcow2 format");
  image::read_qcow2_header(file);
  return file;
}

}  // namespace

Qcow2FileImage::Qcow2FileImage(File image, ForeignGranules& foreign)
    : FileImage(std::move(image), foreign),
      header_(checked(file())),
      refcounts_(file(), header_.header()),
      cluster_size_(std::uint64_t{1} << header_.header().cluster_bits),
      cluster_granules_(cluster_size_ / kFileGranule),
      granules_(header_.header().size / kFileGranule) {
  if (cluster_granules_ == 0)
    fail(ENOTSUP, "{}: has clusters of {} bytes; here they have {} or more", file().name(),
         cluster_size_, kFileGranule);
  if (granules_ == 0 || header_.header().size % kFileGranule != 0)
    fail(ENOTSUP, "{}: its virtual size, {} bytes, is no multiple of {}", file().name(),
         std::uint64_t{header_.header().size}, kFileGranule);
  if (header_.backing) {
    if (header_.backing->format.empty())
      fail(EINVAL, "{}: does not record the format of its backing file", file().name());
    backing_ = {image::resolve_backing_path(file().name(), header_.backing->path),
                header_.backing->format};
  }
  read_tables();
  bitmaps_ = read_bitmaps(file(), granules_);
}

void Qcow2FileImage::read_tables() {
  const std::uint64_t entries = cluster_size_ / sizeof(be64);
  const std::uint64_t clusters = div_round_up(granules_, cluster_granules_);
  const std::uint64_t tables = div_round_up(clusters, entries);
  if (header_.header().l1_size < tables)
    fail(EINVAL, "{}: its L1 table has {} entries; the disk needs {}", file().name(),
         std::uint32_t{header_.header().l1_size}, tables);
  std::vector<be64> buffer(tables);
  l1_.offset = header_.header().l1_table_offset;
  file().read_exactly_at(std::as_writable_bytes(std::span(buffer)), l1_.offset);
  l1_.entries.assign(buffer.begin(), buffer.end());
  l2_.resize(tables);
  buffer.resize(entries);
  for (std::size_t i = 0; i < tables; ++i) {
    l2_[i].offset = l1_.entries[i] & kOffsetMask;
    if (l2_[i].offset == 0)
      continue;
    file().read_exactly_at(std::as_writable_bytes(std::span(buffer)), l2_[i].offset);
    l2_[i].entries.assign(buffer.begin(), buffer.end());
    for (const std::uint64_t entry : l2_[i].entries)
      if ((entry & kCompressed) != 0)
        fail(ENOTSUP, "{}: has compressed clusters, which cannot be written to here",
             file().name());
  }
}

std::uint64_t Qcow2FileImage::entry(std::uint64_t cluster) const {
  const std::uint64_t entries = cluster_size_ / sizeof(be64);
  const Table& table = l2_[cluster / entries];
  return table.entries.empty() ? 0 : table.entries[cluster % entries];
}

void Qcow2FileImage::mark_dirty(Table& table, std::size_t index) {
  table.first_dirty = std::min(table.first_dirty, index);
  table.last_dirty = std::max(table.last_dirty, index);
}

void Qcow2FileImage::set_entry(std::uint64_t cluster, std::uint64_t entry) {
  const std::uint64_t entries = cluster_size_ / sizeof(be64);
  const std::size_t index = cluster / entries;
  Table& table = l2_[index];
  if (table.entries.empty()) {
    table.offset = refcounts_.allocate();
    table.entries.resize(entries);
    l1_.entries[index] = table.offset | kCopied;
    mark_dirty(l1_, index);
  }
  table.entries[cluster % entries] = entry;
  mark_dirty(table, cluster % entries);
}

/// In the file; requires a cluster that has a place.
std::uint64_t Qcow2FileImage::place_of(std::uint64_t granule) const {
  return (entry(granule / cluster_granules_) & kOffsetMask) +
         granule % cluster_granules_ * kFileGranule;
}

Held Qcow2FileImage::held(std::uint64_t granule) const {
  const std::uint64_t found = entry(granule / cluster_granules_);
  if ((found & kZeroFlag) != 0)
    return Held::zero;
  return (found & kOffsetMask) != 0 ? Held::data : Held::nothing;
}

WriteNumber Qcow2FileImage::read(std::uint64_t granule) const {
  return read_granule(place_of(granule), granule);
}

void Qcow2FileImage::write(std::uint64_t granule, WriteNumber number) {
  const std::uint64_t cluster = granule / cluster_granules_;
  zeroed_.erase(cluster);
  const std::uint64_t found = entry(cluster);
  std::uint64_t place = found & kOffsetMask;
  const bool is_new = place == 0;
  if (is_new)
    place = refcounts_.allocate();
  else if ((found & kZeroFlag) != 0)
    file().write_at(std::vector<std::byte>(cluster_size_), place);
  try {
    write_granule(place + granule % cluster_granules_ * kFileGranule, granule, number);
  } catch (const Error&) {
    if (is_new)
      refcounts_.free(place, 1);
    throw;
  }
  if (found != (place | kCopied))
    set_entry(cluster, place | kCopied);
}

void Qcow2FileImage::write_zero(std::uint64_t granule) {
  const std::uint64_t cluster = granule / cluster_granules_;
  const std::uint64_t found = entry(cluster);
  if ((found & kZeroFlag) != 0)
    return;
  if ((found & kOffsetMask) == 0)
    write(granule, 0);
  else
    write_granule(place_of(granule), granule, 0);
  const std::uint64_t first = cluster * cluster_granules_;
  std::vector<bool>& zeroed = zeroed_[cluster];
  zeroed.resize(std::min(cluster_granules_, granules_ - first));
  zeroed[granule - first] = true;
  if (!std::all_of(zeroed.begin(), zeroed.end(), [](bool is_zero) { return is_zero; }))
    return;
  set_entry(cluster, entry(cluster) | kZeroFlag);
  zeroed_.erase(cluster);
}

void Qcow2FileImage::write_dirty(Table& table) {
  if (table.first_dirty > table.last_dirty)
    return;
  const auto first = table.entries.begin() + static_cast<std::ptrdiff_t>(table.first_dirty);
  const auto end = table.entries.begin() + static_cast<std::ptrdiff_t>(table.last_dirty + 1);
  const std::vector<be64> entries(first, end);
  file().write_at(std::as_bytes(std::span(entries)),
                  table.offset + table.first_dirty * sizeof(be64));
  table.first_dirty = SIZE_MAX;
  table.last_dirty = 0;
}

void Qcow2FileImage::flush() {
  refcounts_.flush(header_);
  for (Table& table : l2_)
    write_dirty(table);
  write_dirty(l1_);
}

void Qcow2FileImage::resize(std::uint64_t /*granules*/) {
  fail(ENOTSUP, "{}: the fake makes no qcow2 image larger", file().name());
}

void Qcow2FileImage::set_backing(const BackingFile& backing) {
  const auto before = std::exchange(header_.backing, backing);
  try {
    header_.write(file());
  } catch (...) {
    header_.backing = before;
    throw;
  }
  backing_ = {image::resolve_backing_path(file().name(), backing.path), backing.format};
}

void Qcow2FileImage::set_bitmaps(std::vector<StoredBitmap> bitmaps) {
  if (!bitmaps.empty() || !bitmaps_.empty())
    write_bitmaps(file(), header_, refcounts_, bitmaps);
  bitmaps_ = std::move(bitmaps);
}

}  // namespace nbdelta::sim
