#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "client/clock.hpp"

namespace nbdelta::sim {

using client::Clock;

/// Bytes of a disk: [begin, end).
struct Range {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t length() const { return end - begin; }
  bool overlaps(Range other) const { return begin < other.end && other.begin < end; }
  bool operator==(const Range&) const = default;
};

inline constexpr Range kWholeDisk{0, UINT64_MAX};

/// What is on its way to a disk.
struct InFlight {
  std::size_t disk = 0;
  Range range;
};

/// Which pages of which disk are dirty, and since when.
class PageCache {
 public:
  static constexpr std::uint64_t kPage = 4096;
  static constexpr std::uint64_t kLongestRun = 1U << 20;  // Linux's usual max_sectors_kb: 1280

  explicit PageCache(std::size_t disks) : dirty_(disks) {}

  /// All pages that the range touches. A page that is dirty already keeps its time.
  void mark(std::size_t disk, Range range, Clock::Time now);
  /// Pages that lie in the range as a whole need not be written any more.
  void forget(std::size_t disk, Range range);
  /// Takes the first run of neighbouring pages of the range that are dirty since before
  /// `dirty_before`; at most kLongestRun. Younger neighbours come along.
  std::optional<Range> take(std::size_t disk, Range range, Clock::Time dirty_before);

  std::uint64_t dirty_bytes() const { return pages_ * kPage; }
  std::uint64_t dirty_bytes(std::size_t disk) const { return dirty_[disk].size() * kPage; }

 private:
  std::vector<std::map<std::uint64_t, Clock::Time>> dirty_;  // by page
  std::uint64_t pages_ = 0;
};

}  // namespace nbdelta::sim
