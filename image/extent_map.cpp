#include "image/extent_map.hpp"

#include <algorithm>
#include <limits>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

// How a run is encoded. First byte: bits 0-1 the state, bit 2 set where the length counts bytes
// rather than sectors of 512 bytes, bits 3-6 the low bits of the length, bit 7 set where more
// follow; then seven bits a byte, least significant first, bit 7 again set where more follow.
// Considered and left: bits at the map's granularity (that of a bitmap with 512-byte granularity
// takes 4 GiB on a 16 TiB disk, and a finer extent breaks it), pairs of 64-bit numbers (320 MB for
// ten million extents).

namespace nbdelta::image {
namespace {

constexpr std::uint64_t kSector = 512;
constexpr std::size_t kLongestRun = 11;  // 1 + ceil((64 - 4) / 7) bytes, and one to spare
constexpr std::byte kMore{0x80};

std::size_t encode(const Extent& run, std::array<std::byte, kLongestRun>& out) {
  const bool in_bytes = run.length % kSector != 0;
  std::uint64_t value = in_bytes ? run.length : run.length / kSector;
  std::size_t used = 0;
  out[used++] = static_cast<std::byte>(static_cast<unsigned>(run.state) | (in_bytes ? 4U : 0U) |
                                       (value & 0xf) << 3);
  value >>= 4;
  while (value != 0) {
    out[used - 1] |= kMore;
    out[used++] = static_cast<std::byte>(value & 0x7f);
    value >>= 7;
  }
  return used;
}

}  // namespace

void ExtentMap::append(std::uint64_t length, State state) {
  if (length == 0)
    return;
  if (length > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) - size_)
    fail(EOVERFLOW, "extent map: {} + {} bytes are more than a disk can have", size_, length);
  if (pending_.length == 0 || pending_.state != state) {
    encode_pending();
    pending_ = {.offset = size_, .length = 0, .state = state};
    pending_data_before_ = bytes(State::data);
    ++extents_[static_cast<std::size_t>(state)];
    boundary_bits_ |= size_;
  }
  pending_.length += length;
  size_ += length;
  bytes_[static_cast<std::size_t>(state)] += length;
}

void ExtentMap::encode_pending() {
  if (pending_.length == 0)
    return;
  std::array<std::byte, kLongestRun> code{};
  const std::size_t used = encode(pending_, code);
  if (blocks_.empty() || blocks_.back().used + used > kBlockBytes) {
    if (memory() + kBlockBytes > memory_limit_)
      fail(ENOMEM, "extent map: more than {} MiB are needed; {} extents up to offset {:#x}",
           memory_limit_ >> 20, extents_[0] + extents_[1] + extents_[2] + extents_[3],
           pending_.offset);
    blocks_.push_back({.offset = pending_.offset,
                       .data_before = pending_data_before_,
                       .used = 0,
                       .bytes = std::make_unique_for_overwrite<std::byte[]>(kBlockBytes)});
  }
  Block& block = blocks_.back();
  std::copy_n(code.begin(), used, block.bytes.get() + block.used);
  block.used += used;
  encoded_size_ = pending_.end();
}

std::size_t ExtentMap::memory() const {
  return blocks_.size() * kBlockBytes + blocks_.capacity() * sizeof(Block);
}

void ExtentMap::Cursor::next() {
  if (extent_.state == State::data)
    data_before_ += extent_.length;
  extent_.offset += extent_.length;
  extent_.length = 0;
  const ExtentMap& map = *map_;
  if (block_ < map.blocks_.size() && position_ == map.blocks_[block_].used) {
    ++block_;
    position_ = 0;
  }
  if (block_ == map.blocks_.size()) {
    if (extent_.offset < map.size_)
      extent_ = map.pending_;
    return;
  }
  const std::byte* bytes = map.blocks_[block_].bytes.get();
  const auto first = static_cast<unsigned>(bytes[position_]);
  std::uint64_t value = first >> 3 & 0xf;
  for (unsigned shift = 4; (bytes[position_++] & kMore) != std::byte{0}; shift += 7)
    value |= static_cast<std::uint64_t>(bytes[position_] & ~kMore) << shift;
  extent_.state = static_cast<State>(first & 3U);
  extent_.length = (first & 4U) != 0 ? value : value * kSector;
}

ExtentMap::Cursor ExtentMap::at(std::uint64_t offset) const {
  Cursor cursor;
  cursor.map_ = this;
  if (offset >= encoded_size_) {  // in the pending run, or at the end
    cursor.block_ = blocks_.size();
    cursor.extent_.offset = size_;
    cursor.data_before_ = bytes(State::data);
    if (offset < size_) {
      cursor.extent_ = pending_;
      cursor.data_before_ = pending_data_before_;
    }
    return cursor;
  }
  const auto after = std::upper_bound(
      blocks_.begin(), blocks_.end(), offset,
      [](std::uint64_t wanted, const Block& block) { return wanted < block.offset; });
  const auto block = std::prev(after);
  cursor.block_ = static_cast<std::size_t>(block - blocks_.begin());
  cursor.extent_ = {.offset = block->offset, .length = 0, .state = State::unchanged};
  cursor.data_before_ = block->data_before;
  do
    cursor.next();
  while (cursor.extent_.end() <= offset);
  return cursor;
}

void ExtentMap::for_each(std::uint64_t offset, std::uint64_t length, const ExtentSink& sink) const {
  const std::uint64_t end = offset + length;
  for (Cursor cursor = at(offset); !cursor.at_end() && cursor.extent().offset < end;
       cursor.next()) {
    const std::uint64_t from = std::max(cursor.extent().offset, offset);
    const std::uint64_t to = std::min(cursor.extent().end(), end);
    if (!sink({.offset = from, .length = to - from, .state = cursor.extent().state}))
      return;
  }
}

std::uint64_t ExtentMap::alignment(std::uint64_t limit) const {
  const std::uint64_t bits = boundary_bits_ | limit;
  return bits & (~bits + 1);
}

ExtentMap widen_to_clusters(const ExtentMap& map, std::uint64_t cluster_size) {
  invariant(is_power_of_two(cluster_size), "the cluster size is a power of two");
  ExtentMap widened;
  const auto end_of_cluster = [&](std::uint64_t offset) {
    return std::min(round_down(offset, cluster_size) + cluster_size, map.size());
  };
  for (auto cursor = map.begin(); !cursor.at_end();) {
    // What lies within the current run in whole clusters keeps its state.
    const std::uint64_t position = widened.size();
    const Extent& run = cursor.extent();
    const std::uint64_t whole =
        run.end() == map.size() ? run.end() : round_down(run.end(), cluster_size);
    if (whole > position) {
      widened.append(whole - position, run.state);
      if (whole == run.end())
        cursor.next();
      continue;
    }
    // One cluster of several runs.
    const std::uint64_t cluster_end = end_of_cluster(position);
    bool only_zeros = true;
    while (!cursor.at_end() && cursor.extent().offset < cluster_end) {
      only_zeros = only_zeros && reads_zero(cursor.extent().state);
      if (cursor.extent().end() > cluster_end)
        break;
      cursor.next();
    }
    widened.append(cluster_end - position, only_zeros ? State::zero : State::data);
  }
  return widened;
}

}  // namespace nbdelta::image
