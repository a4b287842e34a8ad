#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sim/run_file.hpp"

namespace nbdelta::sim {

// What follows from what a session was: pure functions. Times are microseconds since the run's
// beginning.

/// From the freeze's arrival to the thaw's answer; without a freeze, the switch alone.
struct FreezeWindow {
  std::int64_t start_us = 0;
  std::int64_t end_us = 0;
  std::int64_t switch_start_us = 0;
  std::int64_t freeze_us = 0;  // how long each took; 0 without one
  std::int64_t switch_us = 0;
  std::int64_t thaw_us = 0;

  std::int64_t length_us() const { return end_us - start_us; }
  std::int64_t agent_us() const { return freeze_us + thaw_us; }
  /// What neither the agent nor QEMU needed.
  std::int64_t own_us() const { return length_us() - agent_us() - switch_us; }
};

/// Nothing where no switch was answered.
std::optional<FreezeWindow> window_of(const RunSession& session);

/// A state of the session, as far as QEMU, the agent and the data's way show it: docs/simulator.md.
struct SessionState {
  std::string_view name;
  std::int64_t start_us = 0;
  std::int64_t end_us = 0;
};

/// In their order, without gaps from the first one's start.
std::vector<SessionState> states_of(const RunSession& session);
/// The state that the session was in; "" where it was in none.
std::string_view state_at(const std::vector<SessionState>& states, std::int64_t us);

/// How long the guest's file systems were frozen.
std::int64_t frozen_us(const RunSession& session);
/// The longest that a request of the guest's took, of those that were done.
std::int64_t longest_request_us(const RunSession& session);

/// Bytes a second, in steps of time from `start_us` on, of what the amounts grow by.
std::vector<double> rates_of(const std::vector<RunAmount>& amounts, std::int64_t start_us,
                             std::int64_t step_us, std::size_t steps);

/// Columns of equal width.
struct Histogram {
  double start = 0;  // of the first column
  double width = 1;
  std::vector<std::size_t> counts;
};

/// Each value is in one column. Widths are 1, 2 or 5 times a power of ten; there are at most
/// `most_columns`, none without values.
Histogram histogram_of(const std::vector<double>& values, std::size_t most_columns);

/// What befell the sessions that a kind of fault fell upon.
struct FaultEffect {
  std::string name;
  std::size_t sessions = 0;
  std::size_t done = 0;  // all the same
  std::int64_t longest_frozen_us = 0;
  std::int64_t longest_request_us = 0;
  std::vector<std::int64_t> frozen_us;  // of each session
};

/// By name.
std::vector<FaultEffect> effects_of(const std::vector<Run>& runs);

}  // namespace nbdelta::sim
