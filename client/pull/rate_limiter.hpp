#pragma once

#include <chrono>
#include <cstdint>

namespace nbdelta::client::pull {

/// Shares out a number of bytes a second, in the order of asking. Time is passed in; not safe to
/// share between threads.
class RateLimiter {
 public:
  using Clock = std::chrono::steady_clock;

  /// 0: no limit.
  explicit RateLimiter(std::uint64_t bytes_per_second) : bytes_per_second_(bytes_per_second) {}

  /// Books `bytes` and returns how long after `now` they may move. What was not used in quiet times
  /// is lost but for kBurst.
  Clock::duration book(std::uint64_t bytes, Clock::time_point now);

  static constexpr std::chrono::milliseconds kBurst{50};

 private:
  std::uint64_t bytes_per_second_;
  Clock::time_point free_at_{};  // all that was booked has moved by then
};

}  // namespace nbdelta::client::pull
