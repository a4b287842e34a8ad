#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "client/clock.hpp"
#include "sim/rehearsal.hpp"
#include "sim/scenario.hpp"

namespace nbdelta::sim {

/// What a guest goes through after its full backup.
struct GuestRun {
  std::uint64_t incrementals = 5;  // backups; a commit that does not end is the last one
  std::chrono::milliseconds commit_deadline = client::backup::Options().commit_deadline;
  std::vector<RunSession>* recorded = nullptr;  // becomes what happened
  std::function<void()> backed_up = [] {};      // after each backup
};

struct ForecastOptions {
  std::uint64_t runs = 20;         // each with a guest and a seed of its own
  std::uint64_t incrementals = 5;  // backups of a run after its full one
  std::chrono::milliseconds commit_deadline = client::backup::Options().commit_deadline;
  unsigned threads = 1;
  Run* record = nullptr;  // becomes what happened: all of the first run, the others' windows
  /// So many of a run's backups are over, or will not be made. From any of the threads.
  std::function<void(std::uint64_t backups)> done = [](std::uint64_t /*backups*/) {};
};

/// One quantity over all runs.
struct Spread {
  std::size_t count = 0;  // of values; 0: the others mean nothing
  double median = 0;
  double percentile_95 = 0;
  double percentile_99 = 0;
  double largest = 0;
};

/// A full backup and more after it, of a guest of its own. Throws what a backup throws.
std::vector<RehearsedBackup> rehearse(const Scenario& scenario, std::uint64_t run,
                                      const GuestRun& options);

/// What guests of rehearse() went through, one after the other.
Run run_of(const Scenario& scenario, std::vector<std::vector<RunSession>> guests);

/// Percentiles are by nearest rank.
Spread spread_of(std::vector<double> values);

double milliseconds(client::Clock::Duration time);

/// What to expect. Times are in milliseconds, those of the window by nbdelta's own clocks, as in a
/// manifest.
struct Forecast {
  std::size_t windows = 0;  // of backups that were made
  Spread window;
  Spread freeze;    // the agent's
  Spread switched;  // QEMU's transaction
  Spread thaw;
  Spread own;
  Spread stall;         // the longest that a request of the guest's took, of each backup
  Spread full_overlay;  // bytes
  Spread incremental_overlay;
  Spread full_session;
  Spread incremental_session;
  std::size_t overlays_kept = 0;  // commits that the guest's writes outran
  std::size_t refused = 0;        // backups that were not made: the guest was not frozen in time
  std::string refusal;            // of the first
};

/// Rehearses the scenario: seeds from the scenario's on; between two backups its duration passes.
/// A run ends with a commit that does not. Throws what a backup throws.
Forecast forecast(const Scenario& scenario, const ForecastOptions& options);

}  // namespace nbdelta::sim
