#include "client/pull/rate_limiter.hpp"

#include <algorithm>

namespace nbdelta::client::pull {

RateLimiter::Clock::duration RateLimiter::book(std::uint64_t bytes, Clock::time_point now) {
  if (bytes_per_second_ == 0)
    return Clock::duration::zero();
  const auto start = std::max(free_at_, now - kBurst);
  const std::chrono::duration<double> takes(static_cast<double>(bytes) /
                                            static_cast<double>(bytes_per_second_));
  free_at_ = start + std::chrono::duration_cast<Clock::duration>(takes);
  return std::max(start - now, Clock::duration::zero());
}

}  // namespace nbdelta::client::pull
