#include <libnbd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "image/status_reply.hpp"
#include "image/view.hpp"
#include "nbdkit-plugin/dirty_map.hpp"

namespace nbdelta::plugin {
namespace {

constexpr int kPatienceMs = 60'000;
/// Below 4 GiB whatever the protocol's version, and aligned for any server.
constexpr std::uint64_t kRequest = 4 * kGiB - 64 * kKiB;
/// A server may answer in pieces, but not for ever in pieces of one extent.
constexpr std::uint64_t kMostShortReplies = std::uint64_t{1} << 20;

struct Close {
  void operator()(nbd_handle* handle) const { nbd_close(handle); }
};
using Handle = std::unique_ptr<nbd_handle, Close>;

struct Reply {
  const std::string* context;
  std::vector<image::StatusEntry> entries;
  bool out_of_memory = false;
  bool twice = false;  // the context was answered more than once

  static int extents(void* user, const char* context, std::uint64_t /*offset*/,
                     std::uint32_t* entries, std::size_t count, int* /*error*/) noexcept {
    auto* reply = static_cast<Reply*>(user);
    if (context != *reply->context)
      return 0;
    reply->twice = reply->twice || !reply->entries.empty();
    try {
      for (std::size_t i = 0; i + 1 < count; i += 2)
        reply->entries.push_back({.length = entries[i], .flags = entries[i + 1]});
    } catch (...) {
      reply->out_of_memory = true;
    }
    return 0;
  }
};

class MapServer {
 public:
  MapServer(const std::string& uri, const std::string& context)
      : uri_(uri), context_(context), handle_(nbd_create()) {
    if (handle_ == nullptr || nbd_add_meta_context(nbd(), context.c_str()) != 0 ||
        nbd_set_uri_allow_local_file(nbd(), true) != 0 || nbd_set_full_info(nbd(), true) != 0 ||
        nbd_aio_connect_uri(nbd(), uri.c_str()) != 0)
      refuse("cannot connect");
    wait_until([this] { return nbd_aio_is_ready(nbd()) == 1; });
    if (nbd_can_meta_context(nbd(), context.c_str()) != 1)
      fail(ENOENT, "map={}: the server has no metadata context '{}' for this export", uri_,
           context_);
    if (context == image::kBaseAllocation && !is_changed_view())
      fail(EINVAL,
           "map={}: the export is no changed view, and in any other base:allocation does not tell "
           "what has changed",
           uri_);
  }

  std::uint64_t size() const {
    const std::int64_t size = nbd_get_size(nbd());
    if (size < 0)
      refuse("cannot tell the size");
    return static_cast<std::uint64_t>(size);
  }

  std::vector<image::StatusEntry> block_status(std::uint64_t offset, std::uint64_t count) const {
    Reply reply{.context = &context_, .entries = {}};
    const std::int64_t cookie = nbd_aio_block_status(
        nbd(), count, offset, {.callback = &Reply::extents, .user_data = &reply, .free = nullptr},
        NBD_NULL_COMPLETION, 0);
    if (cookie < 0)
      refuse("block status");
    const auto id = static_cast<std::uint64_t>(cookie);
    wait_until([&] {
      const int completed = nbd_aio_command_completed(nbd(), id);
      if (completed < 0)
        refuse("block status");
      return completed == 1;
    });
    if (reply.out_of_memory)
      fail(ENOMEM, "map={}: no memory for the server's reply", uri_);
    if (reply.twice)
      fail(EPROTO, "map={}: block status at {:#x}: the server answered twice", uri_, offset);
    return std::move(reply.entries);
  }

 private:
  /// Only there HOLE without ZERO means "unchanged" (docs/extents.md).
  bool is_changed_view() const {
    char* const text = nbd_get_export_description(nbd());
    const std::string description = text == nullptr ? "" : text;
    std::free(text);  // NOLINT(cppcoreguidelines-no-malloc): libnbd allocates with malloc
    return description.starts_with(image::kChangedViewDescription);
  }

  nbd_handle* nbd() const { return handle_.get(); }

  [[noreturn]] void refuse(std::string_view what) const {
    const int error = nbd_get_errno();
    fail(error != 0 ? error : EIO, "map={}: {}: {}", uri_, what, nbd_get_error());
  }

  template <class Condition>
  void wait_until(Condition holds) const {
    while (!holds()) {
      if (nbd_aio_is_dead(nbd()) == 1 || nbd_aio_is_closed(nbd()) == 1)
        refuse("the connection was lost");
      const int polled = nbd_poll(nbd(), kPatienceMs);
      if (polled < 0)
        refuse("lost");
      if (polled == 0)
        fail(ETIMEDOUT, "map={}: the server did not answer for {} s", uri_, kPatienceMs / 1000);
    }
  }

  std::string uri_;
  std::string context_;
  Handle handle_;
};

}  // namespace

image::ExtentMap read_map_from_nbd(const std::string& uri, const std::string& context,
                                   std::uint64_t disk_size) {
  const MapServer server(uri, context);
  const std::uint64_t size = server.size();
  if (round_up(size, 512) != round_up(disk_size, 512))
    fail(EINVAL, "map={}: is of a disk of {} bytes; the image has {}", uri, size, disk_size);
  const bool is_bitmap = context.starts_with(image::kDirtyBitmapPrefix);
  image::ExtentMap map;
  std::uint64_t short_replies = 0;
  while (map.size() < size) {
    const std::uint64_t count = std::min(kRequest, size - map.size());
    std::vector<image::StatusEntry> entries = server.block_status(map.size(), count);
    const std::uint64_t covered = image::check_status_reply(entries, map.size(), count, uri);
    if (covered < count && entries.size() == 1 && ++short_replies > kMostShortReplies)
      fail(EPROTO, "map={}: block status at {:#x}: the server answers {} bytes at a time", uri,
           map.size(), covered);
    for (const image::StatusEntry& entry : entries) {
      const bool unchanged =
          is_bitmap ? (entry.flags & 1) == 0
                    : image::state_from_allocation_flags(entry.flags) == image::State::unchanged;
      map.append(entry.length, unchanged ? image::State::unchanged : image::State::data);
    }
  }
  return map;
}

}  // namespace nbdelta::plugin
