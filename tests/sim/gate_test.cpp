#include "sim/gate.hpp"

#include <gmock/gmock.h>

#include <chrono>

#include "tests/sim/exact_scenario.hpp"

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(GateOf, AnExactGuestIsTheSumOfItsParts) {
  for (const std::size_t disks : {1U, 3U}) {
    const Gated result = gate(exact(disks), {.runs = 2, .incrementals = 1});
    const auto count = static_cast<double>(disks);
    EXPECT_THAT(result.failures, IsEmpty());
    EXPECT_EQ(result.disks, disks);
    EXPECT_EQ(result.window.count, 4U);
    EXPECT_NEAR(result.agent.largest, 4 + count * (15 + 6), 0.001);
    EXPECT_NEAR(result.qemu.largest, 1 + count * 3, 0.001);
    // The freeze's answer on its way to the guardian and on to the session, the transaction and its
    // answer, the thaw on its way to the guardian and on to the agent: one more is too much.
    EXPECT_NEAR(result.own.largest, 6 * kMessageMs, 0.001);
    EXPECT_NEAR(result.window.median, 5 + count * 24 + 6 * kMessageMs, 0.001);
    EXPECT_LT(GateOptions().budget, 8 * Rehearsal::kMessage);
  }
}

/// From the end of the freeze to the deadline, or to nbdelta's end, and the thaw.
TEST(GateOf, TheGuestIsThawedWhateverHappens) {
  const Gated result = gate(exact(1), {.runs = 1, .incrementals = 0});
  EXPECT_THAT(result.failures, IsEmpty());
  EXPECT_NEAR(result.freeze_in_hang, 10'000 - 17 + 3 * 2 + 6, 1);
  EXPECT_NEAR(result.freeze_after_kill, 1 + 3 + 3 * 2 + 6, 1);
  EXPECT_NEAR(result.longest_freeze, 1 + 3 + 2 + 6, 1);
}

TEST(GateOf, AFreezeThatTakesTooLongFails) {
  Scenario scenario = exact(1);
  scenario.guest.freeze = 20s;
  EXPECT_THAT(gate(scenario, {.runs = 1, .incrementals = 0}).failures,
              ElementsAre(HasSubstr("run 1, backup 1: the guest cannot be frozen"),
                          HasSubstr("there was no switch"), HasSubstr("there was no switch")));
}

TEST(GateOf, WhatPassesItsBudgetFails) {
  const Gated result =
      gate(exact(2), {.budget = 6 * Rehearsal::kMessage - 1us, .runs = 1, .incrementals = 1});
  EXPECT_THAT(result.failures,
              ElementsAre(HasSubstr("run 1, backup 1: 0.120 ms of the window are nbdelta's own, "
                                    "and 0.119 ms are allowed"),
                          HasSubstr("run 1, backup 2: ")));
}

}  // namespace
}  // namespace nbdelta::sim
