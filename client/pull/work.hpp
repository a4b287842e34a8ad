#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <stop_token>
#include <variant>

#include "client/pull/plan.hpp"
#include "client/pull/rate_limiter.hpp"

namespace nbdelta::client::pull {

/// What has been done so far; written by the workers, read by whoever shows it.
struct Counters {
  std::atomic<std::uint64_t> total = 0;    // bytes to be written or zeroed
  std::atomic<std::uint64_t> written = 0;  // bytes of data given to the target
  std::atomic<std::uint64_t> zeroed = 0;
  std::atomic<std::uint64_t> read = 0;  // bytes that came from the source, gaps and blocks included
  std::atomic<std::uint64_t> requests = 0;
  std::atomic<std::uint64_t> retries = 0;
  std::atomic<unsigned> connections = 0;
};

/// What Counters::total is of a map.
inline std::uint64_t bytes_to_settle(const image::ExtentMap& map) {
  return map.size() - map.bytes(image::State::unchanged);
}

/// The plan, shared out between the workers; safe to call from several threads.
class Work {
 public:
  /// `packed`: planned for a packed export.
  Work(const image::ExtentMap& map, const Limits& limits, bool packed,
       std::uint64_t bytes_per_second)
      : limits_(limits),
        packed_(packed),
        disk_size_(map.size()),
        plan_(packed ? AnyPlan(PackedPlan(map, limits)) : AnyPlan(Plan(map, limits))),
        limiter_(bytes_per_second) {}

  std::optional<Operation> next() {
    std::optional<Operation> operation;
    {
      const std::lock_guard guard(mutex_);
      operation = std::visit([](auto& plan) { return plan.next(); }, plan_);
    }
    if (!operation)
      exhausted_.request_stop();
    return operation;
  }

  RateLimiter::Clock::duration book(std::uint64_t bytes) {
    const std::lock_guard guard(mutex_);
    return limiter_.book(bytes, RateLimiter::Clock::now());
  }

  /// Stops when there is nothing left to hand out: nobody more is needed.
  std::stop_token exhausted() const { return exhausted_.get_token(); }
  const Limits& limits() const { return limits_; }
  bool is_packed() const { return packed_; }
  std::uint64_t disk_size() const { return disk_size_; }

 private:
  using AnyPlan = std::variant<Plan, PackedPlan>;

  const Limits limits_;
  const bool packed_;
  const std::uint64_t disk_size_;
  std::mutex mutex_;  // of plan_ and limiter_
  AnyPlan plan_;
  RateLimiter limiter_;
  std::stop_source exhausted_;
};

}  // namespace nbdelta::client::pull
