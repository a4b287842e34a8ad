#pragma once

#include <chrono>
#include <string>

#include "sim/rehearsal.hpp"
#include "sim/scenario.hpp"

namespace nbdelta::sim {

/// A guest whose times are exact; nothing is written.
inline Scenario exact(std::size_t disks) {
  using namespace std::chrono_literals;
  Scenario scenario;
  scenario.name = "exact";
  for (std::size_t i = 0; i < disks; ++i)
    scenario.disks.push_back({.name = "disk" + std::to_string(i), .size = 16U << 20});
  scenario.qemu = {.version = "7.2", .command = 1ms, .snapshot = 3ms, .jitter = 0};
  scenario.agent = {.latency = 2ms, .thaw = 6ms, .jitter = 0};
  scenario.guest.freeze = 5ms;
  scenario.guest.freeze_jitter = 0;
  scenario.guest.storage = {
      .throughput = 64U << 20, .latency = 1ms, .flush = 10ms, .parallel = 1, .jitter = 0};
  scenario.duration = 5s;
  return scenario;
}

/// In milliseconds.
inline constexpr double kMessageMs =
    std::chrono::duration<double, std::milli>(Rehearsal::kMessage).count();

}  // namespace nbdelta::sim
