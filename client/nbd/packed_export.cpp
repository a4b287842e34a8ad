#include "client/nbd/packed_export.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/arithmetic.hpp"

namespace nbdelta::client::nbd {
namespace {

using image::ExtentMap;
using image::PackedLayout;
using image::State;

constexpr std::uint64_t kChunk = 256 * kKiB;  // of one read
constexpr std::uint64_t kChunks = 16;         // read at once

/// Reads [offset, offset + out.size()), in chunks.
void read_all(Source& source, std::span<std::byte> out, std::uint64_t offset) {
  std::vector<asio::awaitable<void>> reads;
  while (!out.empty()) {
    const auto part = out.first(std::min<std::uint64_t>(out.size(), kChunk));
    reads.push_back(source.connection().read(part, offset));
    out = out.subspan(part.size());
    offset += part.size();
  }
  source.run(std::move(reads));
}

PackedExport read_packed(Source& source, const Export& view) {
  std::vector<std::byte> buffer(kChunk * kChunks);
  const std::uint64_t export_size = source.negotiated().size;
  if (export_size < PackedLayout::kHeader)
    fail(EPROTO, "packed export: it has {} bytes", export_size);
  const auto header = std::span(buffer).first(PackedLayout::kHeader);
  read_all(source, header, 0);
  PackedExport packed{.layout = PackedLayout::parse(header, export_size), .map = ExtentMap()};
  const PackedLayout& layout = packed.layout;
  for (std::uint64_t offset = PackedLayout::kMap; offset < layout.data();) {
    const auto chunks =
        std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), layout.data() - offset));
    read_all(source, chunks, offset);
    for (std::size_t at = 0; at < chunks.size(); at += ExtentMap::kBlockBytes)
      packed.map.append_encoded(
          std::span<const std::byte>(chunks).subspan(at).first<ExtentMap::kBlockBytes>());
    offset += chunks.size();
  }
  if (layout.disk_size != view.size || packed.map.size() != view.size ||
      packed.map.bytes(State::data) != layout.data_size || packed.map.bytes(State::hole) != 0)
    fail(EPROTO, "packed export: it is not one of this disk");
  return packed;
}

}  // namespace

std::optional<PackedExport> turn_to_packed(Source& source) {
  const Export view = source.negotiated();
  if (!view.changed_view || view.has_bitmap || source.options().view != View::as_named)
    return std::nullopt;
  try {
    source.turn_to(View::packed);
    return read_packed(source, view);
  } catch (const Error& error) {
    if (error.error_number() == ECANCELED)
      throw;
  }
  turn_back(source, view);
  return std::nullopt;
}

void turn_back(Source& source, const Export& view) {
  try {
    source.turn_to(View::as_named);
  } catch (const ConnectionLost& lost) {  // a server that takes one client may not be ready yet
    source.reconnect(lost);
  }
  source.check_same(view);
}

}  // namespace nbdelta::client::nbd
