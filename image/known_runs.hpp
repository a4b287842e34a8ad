#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "image/layer.hpp"

namespace nbdelta::image {

/// Runs of data that somebody has looked up in an image file, so that nobody need look them up
/// again. What is not in it may be data all the same.
class KnownRuns {
 public:
  /// Are kept of those that are added, the first ones: 96 KiB.
  static constexpr std::size_t kMost = 4096;

  KnownRuns() = default;
  /// All of them, which are in ascending order.
  explicit KnownRuns(std::span<const KnownRuns> parts);

  /// Runs in ascending order, of allocation data.
  void add(std::uint64_t offset, const Run& run);

  /// What is known from `offset` on, at most `limit` bytes; of no length where nothing is. `hint`
  /// is for the next call, which finds what follows soon.
  Run at(std::uint64_t offset, std::uint64_t limit, std::size_t& hint) const;

 private:
  struct Known {
    std::uint64_t offset;
    std::uint64_t length;
    HostOffset host_offset;

    std::uint64_t end() const { return offset + length; }
  };

  std::vector<Known> runs_;
};

}  // namespace nbdelta::image
