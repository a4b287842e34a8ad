#include "sim/qcow2_refcounts.hpp"

#include <algorithm>
#include <span>
#include <utility>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

namespace nbdelta::sim {

using image::qcow2::kOffsetMask;

Qcow2Refcounts::Qcow2Refcounts(const File& file, const image::qcow2::Header& header)
    : file_(&file),
      cluster_size_(std::uint64_t{1} << header.cluster_bits),
      table_offset_(header.refcount_table_offset),
      table_clusters_(header.refcount_table_clusters) {
  if (header.refcount_order != 4)
    fail(ENOTSUP, "{}: has refcounts of {} bits; here they have 16", file.name(),
         1U << header.refcount_order);
  std::vector<be64> table(table_clusters_ * cluster_size_ / sizeof(be64));
  file.read_exactly_at(std::as_writable_bytes(std::span(table)), table_offset_);
  while (!table.empty() && table.back() == 0)
    table.pop_back();
  blocks_.assign(table.begin(), table.end());
  counts_.resize(blocks_.size() * counts_per_block());
  std::vector<be16> block(counts_per_block());
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i] &= kOffsetMask;
    if (blocks_[i] == 0)
      continue;
    file.read_exactly_at(std::as_writable_bytes(std::span(block)), blocks_[i]);
    std::copy(block.begin(), block.end(),
              counts_.begin() + static_cast<std::ptrdiff_t>(i * counts_per_block()));
  }
  for (std::uint64_t i = 0; i < counts_.size(); ++i)
    if (counts_[i] != 0)
      used_clusters_ = i + 1;
}

void Qcow2Refcounts::set(std::uint64_t cluster, std::uint16_t count) {
  const std::uint64_t block = cluster / counts_per_block();
  if (block >= blocks_.size()) {
    blocks_.resize(block + 1);
    counts_.resize(blocks_.size() * counts_per_block());
  }
  counts_[cluster] = count;
  dirty_blocks_.insert(block);
  if (count != 0)
    used_clusters_ = std::max(used_clusters_, cluster + 1);
  else
    first_free_ = std::min(first_free_, cluster);
}

std::uint64_t Qcow2Refcounts::allocate(std::uint64_t clusters) {
  const auto is_used = [&](std::uint64_t at) { return at < counts_.size() && counts_[at] != 0; };
  while (is_used(first_free_))
    ++first_free_;
  std::uint64_t first = first_free_;
  for (std::uint64_t length = 0; length < clusters;) {
    if (is_used(first + length)) {
      first += length + 1;
      length = 0;
    } else {
      ++length;
    }
  }
  const std::uint64_t offset = first * cluster_size_;
  const std::uint64_t end = offset + clusters * cluster_size_;
  if (offset < file_->size())
    file_->write_at(std::vector<std::byte>(std::min(end, file_->size()) - offset), offset);
  if (end > file_->size())
    file_->resize(end);
  for (std::uint64_t i = 0; i < clusters; ++i)
    set(first + i, 1);
  return offset;
}

void Qcow2Refcounts::free(std::uint64_t offset, std::uint64_t clusters) {
  for (std::uint64_t i = 0; i < clusters; ++i)
    set(offset / cluster_size_ + i, 0);
}

/// A block's own cluster may need another block.
void Qcow2Refcounts::place_blocks() {
  bool placed = true;
  while (std::exchange(placed, false)) {
    const std::set<std::uint64_t> dirty = dirty_blocks_;
    for (const std::uint64_t block : dirty)
      if (blocks_[block] == 0) {
        const std::uint64_t offset = allocate();
        blocks_[block] = offset;
        table_dirty_ = placed = true;
      }
  }
}

void Qcow2Refcounts::place_table() {
  const std::uint64_t needed = div_round_up(blocks_.size() * sizeof(be64), cluster_size_);
  if (needed <= table_clusters_)
    return;
  table_clusters_ = 2 * needed;
  table_offset_ = allocate(table_clusters_);
  table_dirty_ = true;
  place_blocks();
}

void Qcow2Refcounts::write_block(std::uint64_t block) {
  std::vector<be16> counts(counts_per_block());
  const auto from = counts_.begin() + static_cast<std::ptrdiff_t>(block * counts_per_block());
  std::copy(from, from + static_cast<std::ptrdiff_t>(counts.size()), counts.begin());
  file_->write_at(std::as_bytes(std::span(counts)), blocks_[block]);
}

void Qcow2Refcounts::write_dirty() {
  for (const std::uint64_t block : dirty_blocks_)
    write_block(block);
  dirty_blocks_.clear();
  if (!table_dirty_)
    return;
  std::vector<be64> table(table_clusters_ * cluster_size_ / sizeof(be64));
  std::copy(blocks_.begin(), blocks_.end(), table.begin());
  file_->write_at(std::as_bytes(std::span(table)), table_offset_);
  table_dirty_ = false;
}

void Qcow2Refcounts::flush(Qcow2HeaderFile& header) {
  const std::uint64_t old_offset = table_offset_;
  const std::uint64_t old_clusters = table_clusters_;
  place_blocks();
  place_table();
  write_dirty();
  if (table_offset_ == old_offset)
    return;
  header.header().refcount_table_offset = table_offset_;
  header.header().refcount_table_clusters = static_cast<std::uint32_t>(table_clusters_);
  header.write(*file_);
  free(old_offset, old_clusters);
  write_dirty();
}

}  // namespace nbdelta::sim
