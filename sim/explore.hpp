#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "sim/run_recorder.hpp"
#include "sim/schedule.hpp"

namespace nbdelta::sim {

/// What one schedule came to.
struct Explored {
  std::optional<std::string> violation;
  std::vector<std::string> log;  // where there was one
  std::set<std::string> seen;    // faults, states and crash points
  std::uint64_t steps = 0;
};

/// Runs a schedule from its beginning; the same one always goes the same way.
Explored explore(const Schedule& schedule, bool keep_log = false);

/// Its sessions, up to a violation.
std::vector<RunSession> record_schedule(const Schedule& schedule, RunRecorder::Detail detail);

/// What a violation is one of: its first line, where each word with a digit and each disk's name is
/// '#'.
std::string kind_of(const std::string& violation);

/// Leaves away what a violation does not need: what remains has one of the same kind. A schedule
/// with none stays as it is.
Schedule shrink(Schedule schedule);

struct ExploreResult {
  std::uint64_t schedules = 0;
  std::uint64_t steps = 0;
  std::vector<std::uint64_t> failed;  // seeds
  std::map<std::string, std::uint64_t> seen;
  double seconds = 0;
};

/// Seeds `first` to `last`, in `jobs` threads; stops at `most_failures`. `done` is called after
/// each, from any of the threads.
ExploreResult explore_seeds(
    std::uint64_t first, std::uint64_t last, unsigned jobs, std::size_t most_failures,
    const std::function<void()>& done = [] {});

}  // namespace nbdelta::sim
