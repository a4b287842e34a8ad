#pragma once

#include <string>
#include <vector>

#include "sim/scenario.hpp"
#include "tests/sim/freeze/measured_windows.hpp"

namespace nbdelta::testing {

/// What of a scenario stands for one host and one guest's kernel, whatever the load.
struct HostConstants {
  sim::StorageSetup storage;
  sim::Clock::Duration freeze{};
  double freeze_jitter = 0;
  sim::AgentSetup agent;
  sim::QemuSetup qemu;
  std::string text() const;
};

/// The guest's writer as a load of the fake guest.
sim::Scenario scenario_of(const WriterLoad& load, const HostConstants& constants);

/// From these measurements alone:
/// - the agent's thaw and QEMU's switch: the median of each disk's share;
/// - the storage's speed and each file system's freeze: of a table of speeds that one which, with
///   the freeze time that suits it best, has the least error in the medians of the freezes;
/// - how much each of them varies: from the 95th percentile of what was measured over its load's
///   median.
HostConstants fit(const std::vector<MeasuredLoad>& measured);

/// Median and 95th percentile, interpolated; milliseconds.
struct Quantiles {
  double median = 0;
  double percentile_95 = 0;
};
Quantiles quantiles_of(std::vector<double> milliseconds);
Quantiles measured_window(const MeasuredLoad& measured);
/// Of many backups of the fake guest in virtual time, by the real client/backup.
Quantiles predicted_window(const WriterLoad& load, const HostConstants& constants);

}  // namespace nbdelta::testing
