#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/forecast.hpp"
#include "sim/scenario.hpp"

namespace nbdelta::sim {

struct GateOptions {
  /// Of nbdelta in one window. What it waits for is six messages of Rehearsal::kMessage: one more
  /// question to anybody, and it is passed.
  Clock::Duration budget = std::chrono::microseconds(150);
  std::uint64_t runs = 3;
  std::uint64_t incrementals = 3;
};

/// What the guest's windows in a scenario came to. Times are in milliseconds.
struct Gated {
  std::string scenario;
  std::size_t disks = 0;
  Spread window;
  Spread agent;
  Spread qemu;
  Spread own;
  double longest_freeze = 0;
  double freeze_in_hang = 0;          // the switch hangs: until the deadline
  double freeze_after_kill = 0;       // nbdelta dies in the window
  std::vector<std::string> failures;  // none: it passes
};

/// Rehearses the scenario, and then what must not leave the guest frozen. Throws what a backup
/// throws.
Gated gate(Scenario scenario, const GateOptions& options);

}  // namespace nbdelta::sim
