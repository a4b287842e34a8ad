#include "image/packed.hpp"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "base/big_endian.hpp"
#include "base/error.hpp"

namespace nbdelta::image {
namespace {

constexpr std::uint64_t kPackedMagic = 0x6e62'6465'6c74'6100;  // "nbdelta" and a zero
constexpr std::uint32_t kVersion = 1;

struct PackedHeader {
  be64 magic;
  be32 version;
  be32 reserved;
  be64 disk_size;
  be64 map_size;
  be64 data_size;
  be64 digest;
};

}  // namespace

std::uint64_t digest_of(const ExtentMap& map) {
  constexpr std::size_t kPart = 16 * ExtentMap::kBlockBytes;
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       XXH3_freeState);
  if (state == nullptr)
    throw std::bad_alloc();
  XXH3_64bits_reset(state.get());
  std::vector<std::byte> part(kPart);
  for (std::uint64_t offset = 0; offset < map.encoded_size(); offset += part.size()) {
    part.resize(std::min<std::uint64_t>(kPart, map.encoded_size() - offset));
    map.copy_encoded(part, offset);
    XXH3_64bits_update(state.get(), part.data(), part.size());
  }
  return XXH3_64bits_digest(state.get());
}

PackedLayout PackedLayout::parse(std::span<const std::byte> bytes, std::uint64_t export_size) {
  PackedHeader header{};
  invariant(bytes.size() >= kHeader, "the whole header is there");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kPackedMagic)
    fail(EPROTO, "packed export: it does not begin as one");
  if (header.version != kVersion)
    fail(EPROTO, "packed export: version {} is not known", std::uint32_t{header.version});
  const PackedLayout layout{.disk_size = header.disk_size,
                            .map_size = header.map_size,
                            .data_size = header.data_size,
                            .digest = header.digest};
  // One after the other, so that nothing overflows.
  if (layout.map_size % ExtentMap::kBlockBytes != 0 ||
      layout.map_size > ExtentMap::kDefaultMemoryLimit || layout.map_size > export_size ||
      layout.data_size > export_size || layout.data_size > layout.disk_size ||
      layout.size() != export_size)
    fail(EPROTO, "packed export: {} bytes for the map and {} of data do not fit {} in all",
         layout.map_size, layout.data_size, export_size);
  return layout;
}

Packed::Packed(const View& view, const std::function<void()>& check)
    : disk_(&view.disk()),
      walks_(*disk_, known_),
      map_(read_map(view, check, &known_)),
      layout_{.disk_size = disk_->size(),
              .map_size = map_.encoded_size(),
              .data_size = map_.bytes(State::data),
              .digest = digest_of(map_)} {}

void Packed::read(std::span<std::byte> out, std::uint64_t offset) const {
  const auto part = [&](std::uint64_t end) {
    const std::uint64_t length =
        offset < end ? std::min<std::uint64_t>(out.size(), end - offset) : 0;
    const auto first = out.first(length);
    out = out.subspan(length);
    return std::pair(first, std::exchange(offset, offset + length));
  };
  const auto [header, header_offset] = part(PackedLayout::kHeader);
  read_header(header, header_offset);
  const auto [map, map_offset] = part(layout_.data());
  if (!map.empty())
    map_.copy_encoded(map, map_offset - PackedLayout::kMap);
  read_data(out, offset - layout_.data());
}

void Packed::read_header(std::span<std::byte> out, std::uint64_t offset) const {
  if (out.empty())
    return;
  const PackedHeader header{.magic = kPackedMagic,
                            .version = kVersion,
                            .reserved = 0,
                            .disk_size = layout_.disk_size,
                            .map_size = layout_.map_size,
                            .data_size = layout_.data_size,
                            .digest = layout_.digest};
  const auto bytes = std::as_bytes(std::span(&header, 1));
  std::memset(out.data(), 0, out.size());
  if (offset < bytes.size())
    std::memcpy(out.data(), bytes.data() + offset, std::min(out.size(), bytes.size() - offset));
}

void Packed::read_data(std::span<std::byte> out, std::uint64_t offset) const {
  if (out.empty())
    return;
  auto cursor = map_.at_data(offset);
  Disk::Walk walk = walks_.take();
  std::uint64_t inside = offset - cursor.data_before();
  for (; !out.empty(); cursor.next()) {
    const Extent& run = cursor.extent();
    if (run.state != State::data)
      continue;
    const auto part = out.first(std::min<std::uint64_t>(out.size(), run.length - inside));
    disk_->read(part, run.offset + inside, walk);
    out = out.subspan(part.size());
    inside = 0;
  }
  walks_.give_back(std::move(walk));
}

Disk::Walk Packed::Walks::take() {
  const std::lock_guard guard(mutex_);
  if (unused_.empty())
    return disk_.new_walk(&known_);
  Disk::Walk walk = std::move(unused_.back());
  unused_.pop_back();
  return walk;
}

void Packed::Walks::give_back(Disk::Walk walk) {
  const std::lock_guard guard(mutex_);
  unused_.push_back(std::move(walk));
}

}  // namespace nbdelta::image
