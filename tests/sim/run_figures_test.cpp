#include "sim/run_figures.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "tests/support/random.hpp"

namespace nbdelta::sim {
namespace {

using ::testing::ElementsAre;

RunCommand command(std::string_view to, const std::string& name, std::int64_t start,
                   std::int64_t end) {
  RunCommand made;
  made.to = to;
  made.name = name;
  made.start_us = start;
  made.end_us = end;
  return made;
}

RunCommand transaction(std::int64_t start, std::int64_t end) {
  RunCommand made = command(kToQemu, "transaction", start, end);
  made.snapshots = 1;
  return made;
}

RunCommand freeze(std::int64_t start, std::int64_t end) {
  return command(kToAgent, "guest-fsfreeze-freeze", start, end);
}

RunCommand thaw(std::int64_t start, std::int64_t end) {
  return command(kToAgent, "guest-fsfreeze-thaw", start, end);
}

RunSession session(std::vector<RunCommand> commands, std::int64_t end = 1000) {
  RunSession made;
  made.end_us = end;
  made.commands = std::move(commands);
  return made;
}

std::vector<std::string> names(const std::vector<SessionState>& states) {
  std::vector<std::string> names;
  for (const SessionState& state : states)
    names.emplace_back(state.name);
  return names;
}

TEST(WindowOf, IsFromTheFreezeToTheThaw) {
  const auto window = window_of(session({freeze(10, 60), transaction(62, 70), thaw(75, 80)}));
  ASSERT_TRUE(window);
  EXPECT_EQ(window->start_us, 10);
  EXPECT_EQ(window->end_us, 80);
  EXPECT_EQ(window->switch_start_us, 62);
  EXPECT_EQ(window->agent_us(), 55);
  EXPECT_EQ(window->switch_us, 8);
  EXPECT_EQ(window->own_us(), 7);
}

TEST(WindowOf, KnowsWhatDoesNotBelongToIt) {
  // An earlier session's file systems are thawed, its bitmaps merged; a second thaw confirms.
  const auto window =
      window_of(session({thaw(1, 2), command(kToQemu, "transaction", 3, 4), freeze(10, 60),
                         transaction(60, 70), thaw(70, 80), thaw(90, 95)}));
  EXPECT_EQ(window->start_us, 10);
  EXPECT_EQ(window->end_us, 80);
  // A freeze that failed, and was thawed for that: the switch went without.
  RunCommand failed = freeze(10, 20);
  failed.error = "no";
  EXPECT_EQ(window_of(session({failed, thaw(21, 25), transaction(30, 40)}))->length_us(), 10);
  EXPECT_EQ(window_of(session({freeze(10, 20), thaw(21, 25), transaction(30, 40), thaw(41, 42)}))
                ->length_us(),
            10);
  // A thaw without its answer.
  RunCommand lost = thaw(70, 80);
  lost.end_us.reset();
  EXPECT_EQ(window_of(session({freeze(10, 60), transaction(60, 70), lost}))->end_us, 70);
  RunCommand refused = transaction(30, 40);
  refused.error = "no";
  EXPECT_FALSE(window_of(session({freeze(10, 20), refused})));
  EXPECT_FALSE(window_of(session({})));
}

TEST(StatesOf, ComeInOrderWithoutGaps) {
  RunSession made = session({freeze(10, 60), transaction(62, 70), thaw(75, 80),
                             command(kToQemu, "block-commit", 400, 401),
                             command(kToQemu, "blockdev-del", 700, 710)});
  EXPECT_THAT(names(states_of(made)),
              ElementsAre("prepare", "freeze", "switch", "thaw", "copy", "commit", "rotate"));
  made.pulled = {{100, 1}, {300, 2}};
  const std::vector<SessionState> states = states_of(made);
  EXPECT_THAT(names(states), ElementsAre("prepare", "freeze", "switch", "thaw", "export", "pull",
                                         "commit", "rotate"));
  EXPECT_EQ(states.front().start_us, 0);
  for (std::size_t i = 1; i < states.size(); ++i)
    EXPECT_EQ(states[i].start_us, states[i - 1].end_us) << states[i].name;
  EXPECT_EQ(states.back().end_us, 1000);
  EXPECT_EQ(state_at(states, 5), "prepare");
  EXPECT_EQ(state_at(states, 61), "freeze");
  EXPECT_EQ(state_at(states, 399), "pull");
  EXPECT_EQ(state_at(states, 705), "commit");
  EXPECT_EQ(state_at(states, 2000), "");
}

TEST(StatesOf, EndWhereTheSessionDid) {
  EXPECT_THAT(names(states_of(session({}))), ElementsAre("prepare"));
  EXPECT_THAT(names(states_of(session({freeze(10, 60), transaction(62, 70), thaw(75, 80)}, 80))),
              ElementsAre("prepare", "freeze", "switch", "thaw"));
  EXPECT_THAT(names(states_of(session({transaction(62, 70)}))),
              ElementsAre("prepare", "switch", "copy"));
}

TEST(RatesOf, AddUpToWhatWasPulled) {
  const std::vector<RunAmount> pulled{{10, 100}, {19, 300}, {35, 1000}, {99, 1500}};
  const std::vector<double> rates = rates_of(pulled, 0, 10, 5);
  const std::vector<double> expected{0, 300 / 10e-6, 0, 700 / 10e-6, 500 / 10e-6};
  EXPECT_THAT(rates, ::testing::Pointwise(::testing::DoubleNear(1), expected));
}

TEST(HistogramOf, HasEveryValueOnce) {
  auto random = testing::Random::from_environment();
  for (int round = 0; round < 300; ++round) {
    std::vector<double> values(1 + random.below(1000));
    const double scale = std::pow(10.0, static_cast<double>(random.below(9)) - 3);
    const double offset = random.chance(50) ? 0 : scale * 1000;
    for (double& value : values)
      value = offset + scale * static_cast<double>(random.below(10'000)) / 1000;
    const Histogram histogram = histogram_of(values, 40);
    EXPECT_EQ(std::accumulate(histogram.counts.begin(), histogram.counts.end(), std::size_t{0}),
              values.size());
    EXPECT_LE(histogram.counts.size(), 40U);
    EXPECT_GT(histogram.counts.front(), 0U);
    EXPECT_GT(histogram.counts.back(), 0U);
    for (std::size_t i = 0; i < histogram.counts.size(); ++i) {
      const double low = histogram.start + static_cast<double>(i) * histogram.width;
      const double slack = histogram.width * 1e-6;
      const auto inside = std::count_if(values.begin(), values.end(), [&](double value) {
        return value >= low - slack && value < low + histogram.width + slack;
      });
      EXPECT_LE(histogram.counts[i], static_cast<std::size_t>(inside));
    }
  }
}

TEST(HistogramOf, OfOneAndOfEqualAndOfNoValues) {
  EXPECT_THAT(histogram_of({5}, 40).counts, ElementsAre(1));
  EXPECT_THAT(histogram_of({0, 0, 0}, 40).counts, ElementsAre(3));
  EXPECT_TRUE(histogram_of({}, 40).counts.empty());
}

TEST(EffectsOf, CountsASessionForEachOfItsFaults) {
  sim::Run run;
  run.sessions = {session({}), session({}), session({}), session({})};
  run.sessions[0].faults = {{1, "late answer"}, {2, "kill QEMU"}, {3, "late answer"}};
  run.sessions[0].frozen = {{0, 5}, {10, 30}};
  run.sessions[0].result = "lost";
  run.sessions[1].faults = {{1, "late answer"}};
  run.sessions[1].result = kResultDone;
  run.sessions[1].latency = {{0, 1, 4, 9}, {5, 1, 3, 3}};
  run.sessions[2].faults = {{1, "late answer"}};
  run.sessions[3].result = kResultDone;
  const std::vector<FaultEffect> effects = effects_of({run});
  ASSERT_EQ(effects.size(), 2U);
  EXPECT_EQ(effects[0].name, "kill QEMU");
  EXPECT_EQ(effects[0].sessions, 1U);
  EXPECT_EQ(effects[0].longest_frozen_us, 25);
  EXPECT_EQ(effects[1].sessions, 3U);
  EXPECT_EQ(effects[1].done, 1U);
  EXPECT_EQ(effects[1].longest_request_us, 9);
  EXPECT_THAT(effects[1].frozen_us, ElementsAre(25, 0, 0));
}

}  // namespace
}  // namespace nbdelta::sim
