#include "image/extent_map.hpp"

#include <algorithm>
#include <limits>
#include <utility>

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
constexpr std::size_t kBlocksOfAPart = 8;
static_assert(kBlocksOfAPart * ExtentMap::kBlockBytes < ExtentMap::kMostRunsOfAPart);

/// A run as it stands in a block.
struct Code {
  unsigned first = 0;       // its first byte
  std::uint64_t units = 0;  // of its length; 0: no run follows in this block
  std::size_t end = 0;      // where the next one begins

  State state() const { return static_cast<State>(first & 3U); }
  std::uint64_t unit() const { return (first & 4U) != 0 ? 1 : kSector; }
  std::uint64_t length() const { return (first & 4U) != 0 ? units : units * kSector; }
};

/// Requires a whole run at `position`.
inline Code decode(const std::byte* bytes, std::size_t position) {
  const auto first = static_cast<unsigned>(bytes[position]);
  std::uint64_t units = first >> 3 & 0xf;
  for (unsigned shift = 4; (bytes[position++] & kMore) != std::byte{0}; shift += 7)
    units |= static_cast<std::uint64_t>(bytes[position] & ~kMore) << shift;
  return {.first = first, .units = units, .end = position};
}

/// Of bytes that may be anything.
Code decode_checked(std::span<const std::byte> bytes, std::size_t position) {
  constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  constexpr std::size_t kMostBytes = 10;  // 4 + 9 * 7 = 67 bits; of the last byte, four too many
  constexpr std::byte kLastBits{0x07};
  std::size_t last = position;
  while (last < bytes.size() && (bytes[last] & kMore) != std::byte{0})
    ++last;
  if (last == bytes.size())
    fail(EPROTO, "extent map: the run at byte {} of a block does not end", position);
  const std::size_t used = last + 1 - position;
  if (used > kMostBytes || (used == kMostBytes && bytes[last] > kLastBits))
    fail(EPROTO, "extent map: the run at byte {} of a block is too long", position);
  const Code code = decode(bytes.data(), position);
  if (code.units > kMost / code.unit())
    fail(EPROTO, "extent map: the run at byte {} of a block is too long", position);
  if (code.units == 0 && bytes[position] != std::byte{0})
    fail(EPROTO, "extent map: the run at byte {} of a block is empty", position);
  return code;
}

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
  if (blocks_.empty() || blocks_.back().used + used > kBlockBytes)
    add_block();
  Block& block = blocks_.back();
  std::copy_n(code.begin(), used, block.bytes.get() + block.used);
  block.used += used;
  encoded_size_ = pending_.end();
}

/// One that begins with the pending run.
ExtentMap::Block& ExtentMap::add_block() {
  if (memory() + kBlockBytes > memory_limit_)
    fail(ENOMEM, "extent map: more than {} MiB are needed; {} extents up to offset {:#x}",
         memory_limit_ >> 20, extents_[0] + extents_[1] + extents_[2] + extents_[3],
         pending_.offset);
  return blocks_.emplace_back(
      Block{.offset = pending_.offset,
            .data_before = pending_data_before_,
            .used = 0,
            .bytes = std::make_unique_for_overwrite<std::byte[]>(kBlockBytes)});
}

void ExtentMap::append(ExtentMap&& more) {
  const std::uint64_t start = size_;
  const std::uint64_t data_before = bytes(State::data);
  auto left_bytes = more.bytes_;
  auto left_extents = more.extents_;
  Cursor cursor = more.begin();
  for (; !cursor.at_end() && cursor.block_ == 0; cursor.next()) {  // the first may prolong our last
    const Extent& run = cursor.extent();
    append(run.length, run.state);
    left_bytes[static_cast<std::size_t>(run.state)] -= run.length;
    --left_extents[static_cast<std::size_t>(run.state)];
  }
  if (!cursor.at_end()) {
    encode_pending();
    for (std::size_t i = 1; i < more.blocks_.size(); ++i) {
      pending_ = {.offset = start + more.blocks_[i].offset};
      pending_data_before_ = data_before + more.blocks_[i].data_before;
      Block& block = add_block();
      block.used = more.blocks_[i].used;
      block.bytes = std::move(more.blocks_[i].bytes);
    }
    pending_ = more.pending_;
    pending_.offset += start;
    pending_data_before_ = data_before + more.pending_data_before_;
    encoded_size_ = pending_.offset;
    size_ = start + more.size_;
    boundary_bits_ |= more.boundary_bits_ | start;
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      bytes_[i] += left_bytes[i];
      extents_[i] += left_extents[i];
    }
  }
  more = ExtentMap(more.memory_limit_);
}

std::uint64_t ExtentMap::encoded_size() const {
  return (blocks_.size() + (pending_.length == 0 ? 0 : 1)) * kBlockBytes;
}

void ExtentMap::copy_encoded(std::span<std::byte> out, std::uint64_t offset) const {
  while (!out.empty()) {
    const std::uint64_t index = offset / kBlockBytes;
    const std::uint64_t from = offset % kBlockBytes;
    std::array<std::byte, kLongestRun> last{};
    std::span<const std::byte> used = last;
    if (index < blocks_.size())
      used = {blocks_[index].bytes.get(), blocks_[index].used};
    else
      used = used.first(encode(pending_, last));
    const auto part = out.first(std::min<std::uint64_t>(out.size(), kBlockBytes - from));
    const auto wanted = used.subspan(std::min<std::uint64_t>(from, used.size()));
    const std::uint64_t copied = std::min(wanted.size(), part.size());
    std::copy_n(wanted.begin(), copied, part.begin());
    std::fill(part.begin() + static_cast<std::ptrdiff_t>(copied), part.end(), std::byte{0});
    out = out.subspan(part.size());
    offset += part.size();
  }
}

/// Takes the block as it is, once it was looked through, but for its last run: that is pending, as
/// ever, until what follows is known; encode_pending() puts it back where it was.
void ExtentMap::append_encoded(std::span<const std::byte, kBlockBytes> encoded) {
  const bool is_first = size_ == 0;
  Extent run{.offset = size_, .length = 0, .state = pending_.state};
  std::size_t last = 0;  // where the last run begins
  std::uint64_t data_before = bytes(State::data);
  std::uint64_t boundary_bits = boundary_bits_;
  auto bytes = bytes_;
  auto extents = extents_;
  for (std::size_t position = 0; position < encoded.size();) {
    const Code code = decode_checked(encoded, position);
    if (code.units == 0)
      break;
    if (code.state() == run.state && !(is_first && run.length == 0))
      fail(EPROTO, "extent map: two neighbouring runs at {:#x} have one state", run.end());
    if (run.length != 0 && run.state == State::data)
      data_before += run.length;
    run = {.offset = run.end(), .length = code.length(), .state = code.state()};
    if (run.length >
        static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) - run.offset)
      fail(EPROTO, "extent map: more bytes than a disk can have");
    bytes[static_cast<std::size_t>(run.state)] += run.length;
    ++extents[static_cast<std::size_t>(run.state)];
    boundary_bits |= run.offset;
    last = std::exchange(position, code.end);
  }
  if (run.length == 0)
    fail(EPROTO, "extent map: a block without runs");
  encode_pending();
  if (last != 0) {
    pending_ = {.offset = size_};
    pending_data_before_ = this->bytes(State::data);
    Block& block = add_block();
    std::copy(encoded.begin(), encoded.end(), block.bytes.get());
    block.used = last;
  }
  pending_ = run;
  pending_data_before_ = data_before;
  encoded_size_ = run.offset;
  size_ = run.end();
  bytes_ = bytes;
  extents_ = extents;
  boundary_bits_ = boundary_bits;
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
  const Code code = decode(map.blocks_[block_].bytes.get(), position_);
  position_ = code.end;
  extent_.state = code.state();
  extent_.length = code.length();
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

std::size_t ExtentMap::parts() const {
  return std::max<std::size_t>(div_round_up(blocks_.size(), kBlocksOfAPart), 1);
}

ExtentMap::Cursor ExtentMap::at_part(std::size_t n) const {
  const std::size_t block = n * kBlocksOfAPart;
  return n == parts() ? at(size_) : at(block == 0 ? 0 : blocks_[block].offset);
}

ExtentMap::Cursor ExtentMap::at_data(std::uint64_t data_before) const {
  if (data_before >= bytes(State::data))
    return at(size_);
  const auto after = std::upper_bound(
      blocks_.begin(), blocks_.end(), data_before,
      [](std::uint64_t wanted, const Block& block) { return wanted < block.data_before; });
  Cursor cursor = at(after == blocks_.begin() ? 0 : std::prev(after)->offset);
  while (cursor.extent().state != State::data ||
         cursor.data_before() + cursor.extent().length <= data_before)
    cursor.next();
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
