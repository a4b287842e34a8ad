#include "sim/storage.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nbdelta::sim {

double draw_jitter(Random& random, double sigma) {
  if (sigma == 0)
    return 1;
  const double radius = std::sqrt(-2 * std::log(1 - random.fraction()));  // Box and Muller
  return std::exp(sigma * radius * std::cos(2 * std::numbers::pi * random.fraction()));
}

Clock::Duration Storage::vary(Clock::Duration time) {
  return std::chrono::duration_cast<Clock::Duration>(time * draw_jitter(random_, setup_.jitter));
}

Clock::Duration Storage::transfer(Clock::Time now, std::uint64_t bytes) {
  const auto time = std::chrono::duration_cast<Clock::Duration>(std::chrono::duration<double>(
      static_cast<double>(bytes) / static_cast<double>(setup_.throughput)));
  const Clock::Duration latency = vary(setup_.latency);
  const Clock::Duration alone = latency / static_cast<std::int64_t>(setup_.parallel);
  free_at_ = std::max(free_at_, now) + time + alone;
  return latency - alone;
}

Clock::Time Storage::write(Clock::Time now, std::uint64_t bytes) {
  const Clock::Duration rest = transfer(now, bytes);
  return free_at_ + rest;
}

Clock::Time Storage::stream(Clock::Time now, std::uint64_t bytes) {
  transfer(now, bytes);
  return free_at_;
}

Clock::Time Storage::flush(Clock::Time now) {
  free_at_ = std::max(free_at_, now) + vary(setup_.flush);
  return free_at_;
}

}  // namespace nbdelta::sim
