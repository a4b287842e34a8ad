#pragma once

#include <cerrno>
#include <cstdint>
#include <limits>
#include <string_view>

#include "base/error.hpp"

namespace nbdelta {

inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = 1024 * kKiB;
inline constexpr std::uint64_t kGiB = 1024 * kMiB;
inline constexpr std::uint64_t kTiB = 1024 * kGiB;

constexpr bool is_power_of_two(std::uint64_t value) {
  return value != 0 && (value & (value - 1)) == 0;
}

/// `unit` is a power of two.
constexpr std::uint64_t round_down(std::uint64_t value, std::uint64_t unit) {
  return value & ~(unit - 1);
}

/// `unit` is a power of two and the result fits 64 bits; see checked_round_up for numbers from a
/// disk or a peer.
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
  return round_down(value + unit - 1, unit);
}

/// The number of `unit`s that hold `value`; does not overflow.
constexpr std::uint64_t div_round_up(std::uint64_t value, std::uint64_t unit) {
  return value / unit + (value % unit != 0 ? 1 : 0);
}

/// Sums and products of numbers that come from a disk or a peer. Throw Error (EOVERFLOW) that
/// names `what`.
inline std::uint64_t checked_add(std::uint64_t a, std::uint64_t b, std::string_view what) {
  std::uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum))
    fail(EOVERFLOW, "{}: {} + {} does not fit 64 bits", what, a, b);
  return sum;
}

inline std::uint64_t checked_mul(std::uint64_t a, std::uint64_t b, std::string_view what) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product))
    fail(EOVERFLOW, "{}: {} x {} does not fit 64 bits", what, a, b);
  return product;
}

inline std::uint64_t checked_round_up(std::uint64_t value, std::uint64_t unit,
                                      std::string_view what) {
  return round_down(checked_add(value, unit - 1, what), unit);
}

}  // namespace nbdelta
