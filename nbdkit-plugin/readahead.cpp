#include "nbdkit-plugin/readahead.hpp"

#include <algorithm>
#include <utility>

#include "base/arithmetic.hpp"

namespace nbdelta::plugin {
namespace {

/// How far one call looks for changed ranges.
constexpr std::uint64_t kSearch = 4 * kGiB;

}  // namespace

void Readahead::before_read(const image::Disk& disk, const Extents& extents, std::uint64_t offset,
                            std::uint64_t length) noexcept {
  if (size_ == 0 || disk.is_in_memory())
    return;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock())
    return;
  if (offset <= behind_ || offset > frontier_) {
    behind_ = previous_ = offset;
    frontier_ = offset + length;
    ahead_ = since_ = 0;
  }
  since_ += length;
  if (since_ >= size_) {
    behind_ = std::exchange(previous_, offset);
    since_ = 0;
  }
  ahead_ -= std::min(ahead_, length);
  if (ahead_ > size_ / 2)
    return;
  try {
    announce_more(disk, extents);
  } catch (...) {
    frontier_ = disk.size();  // damaged from here on: announce no more in this window
  }
}

void Readahead::announce_more(const image::Disk& disk, const Extents& extents) {
  const std::uint64_t end = std::min(disk.size(), frontier_ + kSearch);
  if (frontier_ >= end)
    return;
  if (walk_.empty())
    walk_ = disk.new_walk();
  extents(frontier_, end - frontier_, [&](const image::Extent& extent) {
    const bool is_read = extent.state == image::State::data;
    const std::uint64_t length = is_read ? std::min(extent.length, size_) : extent.length;
    frontier_ = extent.offset + length;
    if (is_read) {
      disk.will_need(extent.offset, length, walk_);
      ahead_ += length;
    }
    return ahead_ < size_;
  });
}

}  // namespace nbdelta::plugin
