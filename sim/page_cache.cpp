#include "sim/page_cache.hpp"

namespace nbdelta::sim {

void PageCache::mark(std::size_t disk, Range range, Clock::Time now) {
  std::map<std::uint64_t, Clock::Time>& dirty = dirty_[disk];
  for (std::uint64_t page = range.begin / kPage; page * kPage < range.end; ++page)
    if (dirty.emplace(page, now).second)
      ++pages_;
}

void PageCache::forget(std::size_t disk, Range range) {
  std::map<std::uint64_t, Clock::Time>& dirty = dirty_[disk];
  auto page = dirty.lower_bound((range.begin + kPage - 1) / kPage);
  while (page != dirty.end() && page->first < range.end / kPage) {
    page = dirty.erase(page);
    --pages_;
  }
}

std::optional<Range> PageCache::take(std::size_t disk, Range range, Clock::Time dirty_before) {
  std::map<std::uint64_t, Clock::Time>& dirty = dirty_[disk];
  auto first = dirty.lower_bound(range.begin / kPage);
  while (first != dirty.end() && first->second >= dirty_before)
    ++first;
  const auto in_range = [&](const auto& page) {
    return page != dirty.end() &&
           page->first < range.end / kPage + (range.end % kPage != 0 ? 1 : 0);
  };
  if (!in_range(first))
    return std::nullopt;
  auto last = first;
  std::uint64_t pages = 0;
  while (in_range(last) && last->first == first->first + pages && pages < kLongestRun / kPage) {
    ++last;
    ++pages;
  }
  const Range run{first->first * kPage, (first->first + pages) * kPage};
  dirty.erase(first, last);
  pages_ -= pages;
  return run;
}

}  // namespace nbdelta::sim
