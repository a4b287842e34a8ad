#include "sim/explore.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <iostream>

#include "tests/sim/failed_seeds.hpp"

/// The real backup code, driven through faults and crashes in virtual time.
namespace nbdelta::testing {
namespace {

void expect_nothing_wrong(std::uint64_t seed) {
  const sim::Schedule schedule = sim::Schedule::of_seed(seed);
  const sim::Explored explored = sim::explore(schedule);
  EXPECT_FALSE(explored.violation)
      << *explored.violation << "\n"
      << schedule.text() << "replay: nbdelta-sim explore --seed " << seed;
}

TEST(Explore, SeedsThatFailedOnce) {
  for (const std::uint64_t seed : kFailedSeeds)
    expect_nothing_wrong(seed);
}

TEST(Explore, TheFirstSeeds) {
  const sim::ExploreResult result = sim::explore_seeds(1, 300, 1, 20);
  for (const std::uint64_t seed : result.failed)
    expect_nothing_wrong(seed);
  std::cout << fmt::format("{} schedules, {} steps, {} crash points, faults and states\n",
                           result.schedules, result.steps, result.seen.size());
  for (const char* must :
       {"frozen", "switched", "backup: full", "backup: incremental", "last backup: incremental",
        "begun", "stopped while a commit holds the guest's writes back", "read without nbdkit"})
    EXPECT_EQ(result.seen.count(must), 1U) << must;
  for (std::uint8_t kind = 0; kind < sim::kFaultKinds; ++kind) {
    const std::string fault = fmt::format("fault: {}", name_of(static_cast<sim::FaultKind>(kind)));
    EXPECT_EQ(result.seen.count(fault), 1U) << fault;
  }
}

TEST(Explore, ASeedAlwaysGoesTheSameWay) {
  for (const std::uint64_t seed : {3U, 38U, 242U}) {
    const sim::Schedule schedule = sim::Schedule::of_seed(seed);
    const sim::Explored once = sim::explore(schedule, true);
    EXPECT_GT(once.log.size(), 50U);
    EXPECT_EQ(once.log, sim::explore(schedule, true).log);
  }
}

TEST(Explore, AViolationHasAKind) {
  EXPECT_EQ(sim::kind_of("a write is lost: vda holds 3 at granule 0, and 17 was written"),
            sim::kind_of("a write is lost: vdb holds 0 at granule 12, and 4 was written"));
  EXPECT_EQ(sim::kind_of("a node is left: nbdelta-0b3fa1-2-vda\nand more"),
            "a node is left: nbdelta-#-#-#");
  EXPECT_NE(sim::kind_of("a node is left: n1"), sim::kind_of("a job is left: n1"));
}

TEST(Explore, WhatShowsNothingWrongIsMadeNoSmaller) {
  const sim::Schedule schedule = sim::Schedule::of_seed(3);
  EXPECT_EQ(sim::shrink(schedule).text(), schedule.text());
}

}  // namespace
}  // namespace nbdelta::testing
