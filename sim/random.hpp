#pragma once

#include <cstdint>
#include <iterator>

namespace nbdelta::sim {

/// A sequence that depends on nothing but its seed (SplitMix64): cheap to start, so that every
/// schedule has its own.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    state_ += 0x9e3779b97f4a7c15U;
    std::uint64_t mixed = state_;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9U;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebU;
    return mixed ^ (mixed >> 31);
  }
  /// 0 to limit - 1. Requires limit > 0.
  std::uint64_t below(std::uint64_t limit) { return next() % limit; }
  /// Both ends included.
  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return low + below(high - low + 1);
  }
  bool chance(unsigned percent) { return below(100) < percent; }
  /// 0 to 1, without 1.
  double fraction() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  /// One of `choices`, which is not empty.
  template <class Range>
  const auto& pick(const Range& choices) {
    return std::data(choices)[below(std::size(choices))];
  }

 private:
  std::uint64_t state_;
};

}  // namespace nbdelta::sim
