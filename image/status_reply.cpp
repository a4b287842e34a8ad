#include "image/status_reply.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace nbdelta::image {
namespace {

constexpr std::uint64_t kDirty = 1;  // QEMU docs/interop/nbd.rst: NBD_STATE_DIRTY

}  // namespace

std::uint64_t check_status_reply(std::vector<StatusEntry>& entries, std::uint64_t offset,
                                 std::uint64_t count, std::string_view source) {
  if (entries.empty())
    fail(EPROTO, "{}: block status of {} bytes at {:#x}: the server sent no extents", source, count,
         offset);
  if (entries.size() > kMostStatusEntries)
    fail(EPROTO, "{}: block status of {} bytes at {:#x}: the server sent {} extents (at most {})",
         source, count, offset, entries.size(), kMostStatusEntries);
  std::uint64_t covered = 0;
  std::size_t used = 0;
  while (used < entries.size() && covered < count) {
    StatusEntry& entry = entries[used++];
    if (entry.length == 0)
      fail(EPROTO, "{}: block status at {:#x}: the server sent an extent of 0 bytes", source,
           offset + covered);
    entry.length = std::min(entry.length, count - covered);
    covered += entry.length;
  }
  if (used < entries.size())
    fail(EPROTO, "{}: block status of {} bytes at {:#x}: the server sent {} extents past its end",
         source, count, offset, entries.size() - used);
  return covered;
}

std::uint64_t merge_dirty_and_allocation(std::span<const StatusEntry> dirty,
                                         std::span<const StatusEntry> allocation,
                                         std::uint64_t offset, const ExtentSink& sink) {
  std::uint64_t covered = 0;
  StatusEntry none{.length = ~std::uint64_t{0}, .flags = 0};
  if (allocation.empty())
    allocation = {&none, 1};
  std::size_t d = 0;
  std::size_t a = 0;
  std::uint64_t dirty_left = dirty.empty() ? 0 : dirty[0].length;
  std::uint64_t allocation_left = allocation[0].length;
  while (d < dirty.size() && a < allocation.size()) {
    const std::uint64_t length = std::min(dirty_left, allocation_left);
    State state = State::unchanged;
    if ((dirty[d].flags & kDirty) != 0)
      state =
          reads_zero(state_from_allocation_flags(allocation[a].flags)) ? State::zero : State::data;
    if (!sink({.offset = offset + covered, .length = length, .state = state}))
      break;
    covered += length;
    dirty_left -= length;
    allocation_left -= length;
    if (dirty_left == 0 && ++d < dirty.size())
      dirty_left = dirty[d].length;
    if (allocation_left == 0 && ++a < allocation.size())
      allocation_left = allocation[a].length;
  }
  return covered;
}

State state_from_allocation_flags(std::uint64_t flags) {
  return static_cast<State>(flags & 3U);
}

}  // namespace nbdelta::image
