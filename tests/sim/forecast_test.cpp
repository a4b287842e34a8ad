#include "sim/forecast.hpp"

#include <gtest/gtest.h>

#include "sim/plot_parts.hpp"
#include "sim/run_figures.hpp"
#include "tests/sim/exact_scenario.hpp"

namespace nbdelta::sim {
namespace {

LoadSetup sequential(std::uint64_t rate) {
  LoadSetup load;
  load.pattern = Pattern::sequential;
  load.request = 64U << 10;
  load.rate = rate;
  return load;
}

TEST(ForecastOf, AnIdleGuestIsTheSumOfItsParts) {
  for (const std::size_t disks : {1U, 3U}) {
    const Forecast result = forecast(exact(disks), {.runs = 2, .incrementals = 2, .threads = 1});
    const auto count = static_cast<double>(disks);
    EXPECT_EQ(result.windows, 6U);
    // Each is asked in a message and answers in one; the guardian speaks with the session between.
    EXPECT_NEAR(result.freeze.median, 2 + count * (10 + 5) + 2 * kMessageMs, 0.001);
    EXPECT_NEAR(result.switched.median, 1 + count * 3 + 2 * kMessageMs, 0.001);
    EXPECT_NEAR(result.thaw.median, 2 + count * 6 + 2 * kMessageMs, 0.001);
    EXPECT_NEAR(result.own.largest, 2 * kMessageMs, 0.001);
    EXPECT_NEAR(result.window.largest, 5 + count * 24 + 8 * kMessageMs, 0.001);
    EXPECT_EQ(result.full_overlay.largest, 0);
    EXPECT_EQ(result.overlays_kept, 0U);
  }
}

/// nbdelta's clocks, and what QEMU and the agent saw: docs/simulator.md, "The report".
TEST(ForecastOf, AWindowIsMeasuredFromBothSides) {
  sim::Run seen;
  const Forecast own_clocks =
      forecast(exact(1), {.runs = 1, .incrementals = 1, .threads = 1, .record = &seen});
  ASSERT_EQ(seen.sessions.size(), 2U);
  for (const RunSession& session : seen.sessions) {
    const FreezeWindow window = window_of(session).value();
    EXPECT_NEAR(milliseconds(window.own_us()), 6 * kMessageMs, 0.001);
    EXPECT_NEAR(milliseconds(window.length_us()), own_clocks.window.median - 2 * kMessageMs, 0.001);
  }
  EXPECT_NEAR(own_clocks.own.median, 2 * kMessageMs, 0.001);
}

/// What is dirty at the freeze is written then.
TEST(ForecastOf, AWriterMakesTheWindowLonger) {
  Scenario scenario = exact(1);
  const Forecast idle = forecast(scenario, {.runs = 2, .incrementals = 3, .threads = 1});
  scenario.guest.loads = {{0, sequential(2 << 20)}};
  const Forecast busy = forecast(scenario, {.runs = 2, .incrementals = 3, .threads = 1});
  // In 5 s 10 MiB come together, at 64 MiB/s.
  EXPECT_NEAR(busy.window.median - idle.window.median, 10 / 64.0 * 1000, 60);
  // A request that waits for the whole of it.
  EXPECT_GT(busy.stall.median, busy.freeze.median * 0.7);
}

TEST(ForecastOf, SlowerStorageMakesItLongerStill) {
  Scenario scenario = exact(1);
  scenario.guest.loads = {{0, sequential(2 << 20)}};
  const Forecast fast = forecast(scenario, {.runs = 2, .incrementals = 3, .threads = 1});
  scenario.guest.storage.throughput = 8U << 20;
  const Forecast slow = forecast(scenario, {.runs = 2, .incrementals = 3, .threads = 1});
  EXPECT_GT(slow.window.median, 3 * fast.window.median);
  EXPECT_GT(slow.full_session.median, 3 * fast.full_session.median);
}

/// The overlay holds what was written while the backup went on.
TEST(ForecastOf, TheOverlayGrowsWithTheSession) {
  Scenario scenario = exact(1);
  scenario.disks[0].size = 256U << 20;
  DiskLoad load{0, sequential(4 << 20)};
  load.load.direct = true;
  scenario.guest.loads = {load};
  const Forecast result = forecast(scenario, {.runs = 2, .incrementals = 2, .threads = 1});
  const double seconds = result.full_session.median / 1000;
  EXPECT_GT(seconds, 4);
  EXPECT_GT(result.full_overlay.median, 0.6 * seconds * (4 << 20));
  EXPECT_LT(result.full_overlay.median, 1.2 * seconds * (4 << 20));
  EXPECT_LT(result.incremental_overlay.median, result.full_overlay.median / 2);
}

TEST(ForecastOf, ACommitThatIsOutrunIsCounted) {
  Scenario scenario = exact(1);
  scenario.disks[0].size = 64U << 20;
  scenario.guest.storage.parallel = 8;
  DiskLoad load{0, sequential(1)};
  load.load.rate.reset();
  load.load.direct = true;
  load.load.programs = 16;
  scenario.guest.loads = {load};
  const Forecast result = forecast(scenario, {.runs = 1, .incrementals = 0, .threads = 1});
  EXPECT_EQ(result.overlays_kept, 1U);
}

/// nbdelta's deadline is 10 s; the guest's freeze takes about as long.
TEST(ForecastOf, AFreezeThatTakesTooLongIsCounted) {
  Scenario scenario = exact(1);
  scenario.guest.freeze = std::chrono::seconds(10);
  scenario.guest.freeze_jitter = 0.3;
  const ForecastOptions options{.runs = 4, .incrementals = 3, .threads = 1};
  const Forecast some = forecast(scenario, options);
  EXPECT_GT(some.windows, 0U);
  EXPECT_GT(some.refused, 0U);
  EXPECT_EQ(some.windows + some.refused, 16U);
  EXPECT_NE(some.refusal.find("the guest cannot be frozen"), std::string::npos) << some.refusal;
  EXPECT_LT(some.freeze.largest, 10'000);
  scenario.guest.freeze *= 4;
  const Forecast none = forecast(scenario, options);
  EXPECT_EQ(none.refused, 16U);
  EXPECT_EQ(none.window.count, 0U);
}

TEST(ForecastOf, ThreadsMakeNoDifference) {
  Scenario scenario = exact(2);
  scenario.guest.storage.jitter = 0.5;
  scenario.guest.loads = {{1, sequential(1 << 20)}};
  const Forecast one = forecast(scenario, {.runs = 6, .incrementals = 1, .threads = 1});
  const Forecast three = forecast(scenario, {.runs = 6, .incrementals = 1, .threads = 3});
  EXPECT_EQ(one.window.median, three.window.median);
  EXPECT_EQ(one.window.percentile_99, three.window.percentile_99);
  EXPECT_EQ(one.incremental_overlay.largest, three.incremental_overlay.largest);
  scenario.seed = 99;
  EXPECT_NE(one.window.median,
            forecast(scenario, {.runs = 6, .incrementals = 1, .threads = 1}).window.median);
}

TEST(ForecastOf, AllKindsOfDisks) {
  Scenario scenario = exact(3);
  scenario.disks[0].format = "raw";
  scenario.disks[1].backing = true;
  scenario.disks[2].by_drive = true;
  scenario.qemu.version = "10.0";
  scenario.guest.loads = {
      {0, sequential(1 << 20)}, {1, sequential(1 << 20)}, {2, sequential(1 << 20)}};
  EXPECT_EQ(forecast(scenario, {.runs = 1, .incrementals = 3, .threads = 1}).windows, 4U);
}

TEST(SpreadOf, NearestRanks) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i)
    values.push_back(i);
  const Spread spread = spread_of(values);
  EXPECT_EQ(spread.median, 50);
  EXPECT_EQ(spread.percentile_95, 95);
  EXPECT_EQ(spread.percentile_99, 99);
  EXPECT_EQ(spread.largest, 100);
  EXPECT_EQ(spread_of({7}).median, 7);
  EXPECT_EQ(spread_of({}).count, 0U);
}

}  // namespace
}  // namespace nbdelta::sim
