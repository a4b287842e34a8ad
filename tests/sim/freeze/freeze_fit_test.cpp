#include "tests/sim/freeze/freeze_fit.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "client/json_text.hpp"
#include "sim/rehearsal.hpp"

/// The fake guest's freeze windows against those of a real guest under TCG: its constants are
/// fitted on one half of the loads, and the other half is predicted.
///
///     NBDELTA_FREEZE_FIT=long build/release/tests/sim/freeze-fit-test
///
/// takes more loads and more windows. NBDELTA_FREEZE_MEASURED=FILE keeps what was measured, or uses
/// it where the file is there.
namespace nbdelta::testing {
namespace {

struct Form {
  std::vector<WriterLoad> loads;  // every other one is fitted
  unsigned windows = 0;
};

Form form() {
  const char* wanted = std::getenv("NBDELTA_FREEZE_FIT");
  if (wanted != nullptr && std::string(wanted) == "long")
    return {{{40, 1}, {160, 1}, {640, 1}, {320, 2}, {160, 3}, {40, 3}, {40, 2}, {640, 2}}, 24};
  return {{{100, 1}, {100, 2}}, 5};
}

Measurements measurements() {
  Measurements measurements;
  const char* file = std::getenv("NBDELTA_FREEZE_MEASURED");
  if (file != nullptr && std::filesystem::exists(file)) {
    std::ifstream in(file);
    client::from_json_text(std::string{std::istreambuf_iterator<char>(in), {}}, measurements, file);
    return measurements;
  }
  const Form wanted = form();
  for (const WriterLoad& load : wanted.loads) {
    measurements.loads.push_back(measure(load, wanted.windows));
    if (file != nullptr)
      std::ofstream(file) << client::to_json_text(measurements);
  }
  return measurements;
}

/// Prints both, and returns whether they are near enough.
bool predicts(const Measurements& measured) {
  std::vector<MeasuredLoad> known;
  for (std::size_t i = 0; i < measured.loads.size(); i += 2)
    known.push_back(measured.loads[i]);
  const HostConstants constants = fit(known);
  std::cout << "fitted: " << constants.text() << "\n"
            << fmt::format("{:<28} {:>8} {:>24} {:>24}\n", "load (operations/s, disks)", "windows",
                           "median: measured, fake", "95 %: measured, fake");
  bool near = true;
  for (std::size_t i = 0; i < measured.loads.size(); ++i) {
    const MeasuredLoad& load = measured.loads[i];
    const Quantiles real = measured_window(load);
    const Quantiles fake = predicted_window(load.load, constants);
    const double median_error = fake.median / real.median - 1;
    const double tail_error = fake.percentile_95 / real.percentile_95 - 1;
    std::cout << fmt::format(
        "{:<28} {:>8} {:>8.1f} {:>8.1f} {:>+5.0f} % {:>8.1f} {:>8.1f} {:>+5.0f} %\n",
        fmt::format("{} {}: {}", load.load.rate, load.load.disks,
                    i % 2 == 0 ? "fitted" : "predicted"),
        load.windows.size(), real.median, fake.median, 100 * median_error, real.percentile_95,
        fake.percentile_95, 100 * tail_error);
    // The aim is 25 %; a machine with other work to do is no measure of it.
    near = near && std::abs(median_error) < 0.75 && std::abs(tail_error) < 1.5;
  }
  return near;
}

/// The loads are measured one after the other: where the machine has other work to do during some
/// of them only, they are measured again.
TEST(FreezeFit, PredictsTheLoadsThatItDoesNotKnow) {
  constexpr int kMostAttempts = 3;
  bool near = false;
  for (int attempt = 0; attempt < kMostAttempts && !near; ++attempt)
    near = predicts(measurements());
  EXPECT_TRUE(near);
}

/// What was made with known constants is fitted to them again.
TEST(FreezeFit, FindsConstantsThatItKnows) {
  HostConstants made;
  made.freeze = std::chrono::milliseconds(30);
  made.freeze_jitter = 0.25;
  made.agent = {.latency = std::chrono::microseconds(500),
                .thaw = std::chrono::milliseconds(8),
                .jitter = 0.3};
  made.qemu.snapshot = std::chrono::milliseconds(4);
  made.storage.throughput = 100U << 20;
  sim::Random random(1);
  std::vector<MeasuredLoad> loads;
  for (const WriterLoad& load : {WriterLoad{40, 1}, WriterLoad{640, 1}, WriterLoad{160, 3}}) {
    loads.push_back({load, {}});
    for (std::uint64_t i = 0; i < 10; ++i) {
      sim::Rehearsal rehearsal(scenario_of(load, made), i);
      rehearsal.let_pass(std::chrono::seconds(36 + static_cast<int>(i)));
      for (int k = 0; k < 4; ++k) {
        rehearsal.let_pass(std::chrono::seconds(3));
        const auto window = rehearsal.backup().window;
        loads.back().windows.push_back(
            {.freeze_us = *window.freeze_answered_us - *window.freeze_sent_us,
             .switch_us = window.switch_us(),
             .thaw_us = *window.thaw_answered_us - *window.thaw_sent_us,
             .length_us = window.length_us()});
      }
    }
  }
  const HostConstants found = fit(loads);
  const auto ms = [](sim::Clock::Duration time) {
    return std::chrono::duration<double, std::milli>(time).count();
  };
  EXPECT_NEAR(ms(found.agent.thaw), 8.3, 1);  // with the command's latency
  EXPECT_NEAR(found.agent.jitter, 0.3, 0.1);
  EXPECT_NEAR(ms(found.qemu.snapshot), 4, 0.5);
  EXPECT_NEAR(found.freeze_jitter, 0.25, 0.1);
  EXPECT_NEAR(ms(found.freeze), 30, 10);
  for (const MeasuredLoad& load : loads) {
    const Quantiles real = measured_window(load);
    const Quantiles fake = predicted_window(load.load, found);
    EXPECT_NEAR(fake.median / real.median, 1, 0.1) << found.text();
    EXPECT_NEAR(fake.percentile_95 / real.percentile_95, 1, 0.2) << found.text();
  }
}

}  // namespace
}  // namespace nbdelta::testing
