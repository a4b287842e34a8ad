#include "tests/sim/freeze/freeze_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "sim/forecast.hpp"
#include "sim/quantity.hpp"

namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;

// tests/guest/writer.cpp, FileWriter: files, their largest size, and requests of 1 to 32 KiB.
constexpr std::uint64_t kFiles = 8;
constexpr std::uint64_t kMeanFile = 1 << 20;
constexpr std::uint64_t kMeanRequest = 16 << 10;
constexpr std::uint64_t kSyncEvery = 16;
constexpr double kSigmas95 = 1.645;  // of a normal distribution

double median_of(std::vector<double> values) {
  return quantiles_of(std::move(values)).median;
}

/// Of each window, a part of it, in milliseconds.
std::vector<double> parts(const MeasuredLoad& measured, std::int64_t MeasuredWindow::*part) {
  std::vector<double> values;
  for (const MeasuredWindow& window : measured.windows)
    values.push_back(static_cast<double>(window.*part) / 1000);
  return values;
}

sim::Clock::Duration from_ms(double milliseconds) {
  return std::chrono::duration_cast<sim::Clock::Duration>(
      std::chrono::duration<double, std::milli>(std::max(0.0, milliseconds)));
}

/// The median of each disk's share.
double share(const std::vector<MeasuredLoad>& measured, std::int64_t MeasuredWindow::*part) {
  std::vector<double> shares;
  for (const MeasuredLoad& load : measured)
    for (const double value : parts(load, part))
      shares.push_back(value / static_cast<double>(load.load.disks));
  return median_of(shares);
}

/// Sigma of the logarithm.
double variation(const std::vector<MeasuredLoad>& measured, std::int64_t MeasuredWindow::*part) {
  std::vector<double> ratios;
  for (const MeasuredLoad& load : measured) {
    const std::vector<double> values = parts(load, part);
    const double median = median_of(values);
    for (const double value : values)
      ratios.push_back(value / median);
  }
  return std::max(0.0, std::log(quantiles_of(ratios).percentile_95) / kSigmas95);
}

sim::Forecast forecast_of(const WriterLoad& load, const HostConstants& constants) {
  return sim::forecast(scenario_of(load, constants), {.runs = 20, .incrementals = 5, .threads = 1});
}

/// The error of the medians of the freezes; sets the freeze time that suits this storage best.
double fit_freeze(const std::vector<MeasuredLoad>& measured, HostConstants& constants) {
  std::vector<double> rests;
  std::vector<double> storage_parts;
  constants.freeze = {};
  for (const MeasuredLoad& load : measured) {
    storage_parts.push_back(forecast_of(load.load, constants).freeze.median);
    rests.push_back((median_of(parts(load, &MeasuredWindow::freeze_us)) - storage_parts.back()) /
                    static_cast<double>(load.load.disks));
  }
  const double freeze = std::max(0.0, median_of(rests));
  constants.freeze = from_ms(freeze);
  double error = 0;
  for (std::size_t i = 0; i < measured.size(); ++i) {
    const double median = median_of(parts(measured[i], &MeasuredWindow::freeze_us));
    const double predicted =
        storage_parts[i] + freeze * static_cast<double>(measured[i].load.disks);
    error += std::abs(predicted / median - 1);
  }
  return error;
}

}  // namespace

std::string HostConstants::text() const {
  return fmt::format(
      "storage {} MiB/s, flush {}; a file system's freeze {} (sigma {:.2f}), thaw {} (sigma "
      "{:.2f}); a disk's switch {} (sigma {:.2f})",
      storage.throughput >> 20, sim::format_time(storage.flush), sim::format_time(freeze),
      freeze_jitter, sim::format_time(agent.thaw), agent.jitter, sim::format_time(qemu.snapshot),
      qemu.jitter);
}

sim::Scenario scenario_of(const WriterLoad& load, const HostConstants& constants) {
  sim::Scenario scenario;
  scenario.name = "writer";
  scenario.duration = 3s;
  scenario.qemu = constants.qemu;
  scenario.agent = constants.agent;
  scenario.guest.storage = constants.storage;
  scenario.guest.freeze = constants.freeze;
  scenario.guest.freeze_jitter = constants.freeze_jitter;
  sim::LoadSetup writer;
  writer.pattern = sim::Pattern::uniform;
  writer.request = kMeanRequest;
  writer.area = kFiles * kMeanFile;
  writer.files = kFiles;
  writer.sync_every = kSyncEvery;
  writer.rate = static_cast<std::uint64_t>(load.rate) * kMeanRequest;
  for (std::int64_t i = 0; i < load.disks; ++i) {
    scenario.disks.push_back(
        {.name = fmt::format("disk{}", i), .size = std::uint64_t{96} << 20, .format = "qcow2"});
    scenario.guest.loads.push_back({static_cast<std::size_t>(i), writer});
  }
  return scenario;
}

HostConstants fit(const std::vector<MeasuredLoad>& measured) {
  HostConstants constants;
  constants.agent.thaw = from_ms(share(measured, &MeasuredWindow::thaw_us));
  constants.agent.jitter = variation(measured, &MeasuredWindow::thaw_us);
  constants.qemu.snapshot = from_ms(share(measured, &MeasuredWindow::switch_us));
  constants.qemu.jitter = variation(measured, &MeasuredWindow::switch_us);
  constants.freeze_jitter = variation(measured, &MeasuredWindow::freeze_us);
  HostConstants best;
  double least = std::numeric_limits<double>::infinity();
  for (const std::uint64_t megabytes : {20U, 50U, 100U, 200U, 500U, 2000U})
    for (const auto flush : {1ms, 4ms, 15ms}) {
      constants.storage.throughput = megabytes << 20;
      constants.storage.flush = flush;
      const double error = fit_freeze(measured, constants);
      if (error < least) {
        least = error;
        best = constants;
      }
    }
  return best;
}

Quantiles quantiles_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    const double place = share * static_cast<double>(values.size() - 1);
    const auto below = static_cast<std::size_t>(place);
    const std::size_t above = std::min(below + 1, values.size() - 1);
    return std::lerp(values[below], values[above], place - static_cast<double>(below));
  };
  return {at(0.5), at(0.95)};
}

Quantiles measured_window(const MeasuredLoad& measured) {
  return quantiles_of(parts(measured, &MeasuredWindow::length_us));
}

Quantiles predicted_window(const WriterLoad& load, const HostConstants& constants) {
  const sim::Spread window = forecast_of(load, constants).window;
  return {window.median, window.percentile_95};
}

}  // namespace nbdelta::testing
