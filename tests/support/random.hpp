#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <random>
#include <span>

namespace nbdelta::testing {

/// A sequence that depends on nothing but its seed: the same on every machine and library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : seed_(seed), engine_(seed) {}

  /// From $NBDELTA_SEED where that is set, else a new one. Prints the seed, and how to replay.
  static Random from_environment();

  std::uint64_t seed() const { return seed_; }

  std::uint64_t next() { return engine_(); }
  /// 0 to limit - 1. Requires limit > 0.
  std::uint64_t below(std::uint64_t limit) { return next() % limit; }
  /// Both ends included.
  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return high - low == UINT64_MAX ? next() : low + below(high - low + 1);
  }
  bool chance(unsigned percent) { return below(100) < percent; }
  /// One of `choices`, which is not empty.
  template <class Range>
  const auto& pick(const Range& choices) {
    return std::data(choices)[below(std::size(choices))];
  }
  void fill(std::span<std::byte> out);

 private:
  std::uint64_t seed_;
  std::mt19937_64 engine_;
};

}  // namespace nbdelta::testing
