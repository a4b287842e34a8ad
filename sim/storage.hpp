#pragma once

#include <cstdint>

#include "client/clock.hpp"
#include "sim/random.hpp"

namespace nbdelta::sim {

using client::Clock;

/// How fast the storage below the guest's disks is. All disks share it.
struct StorageSetup {
  std::uint64_t throughput = 200U << 20;                     // bytes a second; not 0
  Clock::Duration latency = std::chrono::microseconds(200);  // of a request, beyond its transfer
  Clock::Duration flush = std::chrono::milliseconds(2);
  std::uint64_t parallel = 8;  // requests whose latencies pass at the same time; not 0
  double jitter = 0.2;         // sigma of the logarithm of what each time is multiplied by
};

/// exp(sigma x normal), whose median is 1.
double draw_jitter(Random& random, double sigma);

/// When requests are done. One after the other is transferred; a share of their latencies overlaps.
/// For one thread.
class Storage {
 public:
  Storage(const StorageSetup& setup, std::uint64_t seed) : setup_(setup), random_(seed) {}

  /// A request that is sent now, after all that were sent before.
  Clock::Time write(Clock::Time now, std::uint64_t bytes);
  /// When another request can follow this one, for who has many on their way at once.
  Clock::Time stream(Clock::Time now, std::uint64_t bytes);
  /// What was done before is durable then.
  Clock::Time flush(Clock::Time now);

 private:
  /// Takes the storage for that; returns the rest of the request's latency.
  Clock::Duration transfer(Clock::Time now, std::uint64_t bytes);
  Clock::Duration vary(Clock::Duration time);

  StorageSetup setup_;
  Random random_;
  Clock::Time free_at_{};  // the next transfer begins then at the earliest
};

}  // namespace nbdelta::sim
