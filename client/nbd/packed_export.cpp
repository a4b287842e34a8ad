// Source: the packed export beside a changed view.

#include <algorithm>
#include <utility>
#include <vector>

#include "base/arithmetic.hpp"
#include "client/nbd/source.hpp"

namespace nbdelta::client::nbd {
namespace {

using image::ExtentMap;
using image::PackedLayout;
using image::State;

constexpr std::uint64_t kChunk = 256 * kKiB;  // of one read
constexpr std::uint64_t kChunks = 16;         // read at once

}  // namespace

std::optional<PackedExport> Source::turn_to_packed() {
  const Export view = negotiated();
  if (!view.changed_view || view.has_bitmap || view.minimum_block != 1 ||
      options().view != View::as_named)
    return std::nullopt;
  // It stays until there is the other: some servers end with their last client.
  const std::shared_ptr<Connection> of_the_view = connection_;
  try {
    known_.options.view = View::packed;
    known_.exported.reset();
    connect_once({});
    PackedExport packed = read_packed(view);
    known_.packed = packed.layout;
    known_.view = view;
    of_the_view->disconnect();
    return packed;
  } catch (const Error& error) {
    connection_->disconnect();
    connection_ = of_the_view;
    known_.view = view;
    be_the_view_again();
    if (error.error_number() == ECANCELED)
      throw;
    return std::nullopt;
  }
}

void Source::turn_back() {
  const std::shared_ptr<Connection> of_the_packed = connection_;
  be_the_view_again();
  try {
    connect_once({});
  } catch (const ConnectionLost& lost) {
    reconnect(lost);
  }
  of_the_packed->disconnect();
}

void Source::be_the_view_again() {
  known_.options.view = View::as_named;
  known_.exported = std::exchange(known_.view, std::nullopt);
  known_.packed.reset();
}

PackedExport Source::read_packed(const Export& view) {
  PackedExport packed{.layout = read_packed_layout({}), .map = ExtentMap()};
  const PackedLayout& layout = packed.layout;
  std::vector<std::byte> buffer(std::min<std::uint64_t>(kChunk * kChunks, layout.map_size));
  for (std::uint64_t offset = PackedLayout::kMap; offset < layout.data();) {
    const auto chunks =
        std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), layout.data() - offset));
    read_all(chunks, offset, {});
    for (std::size_t at = 0; at < chunks.size(); at += ExtentMap::kBlockBytes)
      packed.map.append_encoded(
          std::span<const std::byte>(chunks).subspan(at).first<ExtentMap::kBlockBytes>());
    offset += chunks.size();
  }
  if (negotiated().description != std::string(image::Packed::kDescription) + view.description ||
      layout.disk_size != view.size || packed.map.size() != view.size ||
      packed.map.bytes(State::data) != layout.data_size || packed.map.bytes(State::hole) != 0)
    fail(EPROTO, "packed export: it is not one of this disk");
  return packed;
}

PackedLayout Source::read_packed_layout(const std::stop_token& give_up) {
  const Export& exported = connection_->negotiated();
  if (!exported.packed || exported.minimum_block != 1 || exported.size < PackedLayout::kHeader)
    fail(EPROTO, "packed export: it is none");
  std::vector<std::byte> header(PackedLayout::kHeader);
  read_all(header, 0, give_up);
  return PackedLayout::parse(header, exported.size);
}

/// Bytes [offset, offset + out.size()).
void Source::read_all(std::span<std::byte> out, std::uint64_t offset,
                      const std::stop_token& give_up) {
  std::vector<asio::awaitable<void>> reads;
  while (!out.empty()) {
    const auto part = out.first(std::min<std::uint64_t>(out.size(), kChunk));
    reads.push_back(connection_->read(part, offset));
    out = out.subspan(part.size());
    offset += part.size();
  }
  run(std::move(reads), give_up);
}

}  // namespace nbdelta::client::nbd
