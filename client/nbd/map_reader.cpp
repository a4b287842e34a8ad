#include "client/nbd/map_reader.hpp"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/arithmetic.hpp"
#include "image/status_reply.hpp"

namespace nbdelta::client::nbd {
namespace {

using image::ExtentMap;
using image::State;

// A request's length has 32 bits in the simple header, and most servers stop at 2^17 to 2^20
// extents anyway.
constexpr std::uint64_t kRegion = 2 * kGiB;
constexpr std::uint64_t kLongRegion = 64 * kGiB;  // where the length has 64 bits
constexpr std::size_t kRegions = 16;
constexpr std::size_t kRegionMemory = 128 * kMiB;
// A server may answer in pieces, but pieces that only prolong what was said before have an end.
constexpr std::uint64_t kIdleReplies = std::uint64_t{1} << 20;

class MapReader {
 public:
  explicit MapReader(Source& source)
      : source_(source), region_(source.negotiated().long_status ? kLongRegion : kRegion) {}

  ExtentMap read() {
    const Export& exported = source_.negotiated();
    if (!exported.has_allocation && !exported.has_bitmap && exported.size != 0)
      map_.append(exported.size, State::data);
    while (map_.size() < exported.size)
      read_regions();
    return std::move(map_);
  }

 private:
  void read_regions();
  asio::awaitable<void> read_region(std::uint64_t offset, std::uint64_t end, ExtentMap& region);
  std::uint64_t take(StatusReply& reply, std::uint64_t offset, std::uint64_t length,
                     ExtentMap& region) const;
  State state_of(std::uint64_t flags) const;

  Source& source_;
  std::uint64_t region_;
  std::uint64_t idle_replies_ = 0;
  ExtentMap map_;
};

void MapReader::read_regions() {
  const std::uint64_t size = source_.negotiated().size;
  std::vector<ExtentMap> regions;
  regions.reserve(kRegions);  // the coroutines hold references
  std::vector<asio::awaitable<void>> tasks;
  for (std::uint64_t offset = map_.size(); offset < size && regions.size() < kRegions;) {
    const std::uint64_t length = std::min(region_, size - offset);
    tasks.push_back(read_region(offset, offset + length, regions.emplace_back(kRegionMemory)));
    offset += length;
  }
  try {
    source_.run(std::move(tasks));
  } catch (const ConnectionLost& lost) {
    source_.reconnect(lost);
    return;
  }
  source_.made_progress();
  for (const ExtentMap& region : regions)
    region.for_each(0, region.size(), [&](const image::Extent& extent) {
      map_.append(extent.length, extent.state);
      return true;
    });
}

asio::awaitable<void> MapReader::read_region(std::uint64_t offset, std::uint64_t end,
                                             ExtentMap& region) {
  const auto runs = [&region] {
    std::uint64_t sum = 0;
    for (const State state : {State::data, State::unchanged, State::zero, State::hole})
      sum += region.extents(state);
    return sum;
  };
  while (offset < end) {
    const std::uint64_t before = runs();
    StatusReply reply = co_await source_.connection().block_status(offset, end - offset);
    const std::uint64_t covered = take(reply, offset, end - offset, region);
    offset += covered;
    if (runs() <= before + 1 && offset < end && ++idle_replies_ > kIdleReplies)
      fail(EPROTO,
           "{}: block status at {}: the server describes the disk in too small pieces, {} bytes at "
           "a time",
           source_.options().uri, offset, covered);
  }
}

std::uint64_t MapReader::take(StatusReply& reply, std::uint64_t offset, std::uint64_t length,
                              ExtentMap& region) const {
  const std::string& name = source_.options().uri;
  if (reply.damaged)
    fail(EPROTO, "{}: block status of {} bytes at {}: a context is there twice or is too long",
         name, length, offset);
  const auto append = [&region](const image::Extent& extent) {
    region.append(extent.length, extent.state);
    return true;
  };
  const Export& exported = source_.negotiated();
  if (exported.has_allocation)
    image::check_status_reply(reply.allocation, offset, length, name);
  if (exported.has_bitmap) {
    image::check_status_reply(reply.bitmap, offset, length, name);
    return image::merge_dirty_and_allocation(reply.bitmap, reply.allocation, offset, append);
  }
  std::uint64_t covered = 0;
  for (const image::StatusEntry& entry : reply.allocation) {
    region.append(entry.length, state_of(entry.flags));
    covered += entry.length;
  }
  return covered;
}

/// HOLE without ZERO means "unchanged" in our changed views and nowhere else: there it says nothing
/// of what is read. In a changed view a hole is a change like any other.
State MapReader::state_of(std::uint64_t flags) const {
  const State state = image::state_from_allocation_flags(flags);
  if (source_.negotiated().changed_view)
    return state == State::hole ? State::zero : state;
  return state == State::unchanged ? State::data : state;
}

}  // namespace

ExtentMap read_map(Source& source) {
  return MapReader(source).read();
}

}  // namespace nbdelta::client::nbd
