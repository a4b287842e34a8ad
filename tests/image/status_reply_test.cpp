#include "image/status_reply.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/error.hpp"
#include "tests/image/runs.hpp"

namespace nbdelta::testing {
namespace {

using image::check_status_reply;
using image::merge_dirty_and_allocation;
using image::StatusEntry;

std::vector<std::uint64_t> lengths(const std::vector<StatusEntry>& entries) {
  std::vector<std::uint64_t> result;
  for (const StatusEntry& entry : entries)
    result.push_back(entry.length);
  return result;
}

TEST(CheckStatusReply, Accepts) {
  struct Row {
    const char* name;
    std::vector<StatusEntry> reply;
    std::uint64_t covered;
    std::vector<std::uint64_t> lengths;
  };
  const std::vector<Row> rows{
      {"exact", {{100, 0}}, 100, {100}},
      {"several", {{40, 0}, {60, 1}}, 100, {40, 60}},
      {"ends early", {{40, 0}}, 40, {40}},
      {"the last one is longer", {{40, 0}, {500, 1}}, 100, {40, 60}},
      {"the only one is much longer", {{UINT64_MAX, 0}}, 100, {100}},
      {"the last byte", {{99, 0}, {UINT64_MAX, 1}}, 100, {99, 1}},
  };
  for (Row row : rows) {
    EXPECT_EQ(check_status_reply(row.reply, 1000, 100, "test"), row.covered) << row.name;
    EXPECT_EQ(lengths(row.reply), row.lengths) << row.name;
  }
}

TEST(CheckStatusReply, Refuses) {
  struct Row {
    const char* name;
    std::vector<StatusEntry> reply;
    const char* message;
  };
  const std::vector<Row> rows{
      {"nothing", {}, "no extents"},
      {"an empty extent", {{0, 0}}, "an extent of 0 bytes"},
      {"an empty extent later", {{10, 0}, {0, 1}, {90, 0}}, "an extent of 0 bytes"},
      {"one past the end", {{100, 0}, {1, 1}}, "1 extents past its end"},
      {"an empty one past the end", {{100, 0}, {0, 1}}, "1 extents past its end"},
      {"too many", std::vector<StatusEntry>((1U << 20) + 2, {1, 0}), "1048578 extents"},
  };
  for (Row row : rows) {
    try {
      check_status_reply(row.reply, 1000, 100, "nbd://test");
      ADD_FAILURE() << row.name;
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EPROTO) << row.name;
      EXPECT_NE(std::string(error.what()).find(row.message), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("nbd://test"), std::string::npos) << error.what();
    }
  }
}

TEST(CheckStatusReply, AcceptsAsManyAsTheProtocolAllows) {
  std::vector<StatusEntry> reply((1U << 20) + 1, {1, 0});
  EXPECT_EQ(check_status_reply(reply, 0, std::uint64_t{1} << 32, "test"), (1U << 20) + 1);
}

Runs merged(const std::vector<StatusEntry>& dirty, const std::vector<StatusEntry>& allocation,
            std::uint64_t offset, std::uint64_t& covered) {
  Runs runs;
  std::uint64_t at = offset;
  covered = merge_dirty_and_allocation(dirty, allocation, offset, [&](const Extent& extent) {
    EXPECT_EQ(extent.offset, at);
    EXPECT_GT(extent.length, 0U);
    at = extent.end();
    append(runs, extent.length, extent.state);
    return true;
  });
  EXPECT_EQ(at, offset + covered);
  return runs;
}

TEST(MergeDirtyAndAllocation, NamedCases) {
  struct Row {
    const char* name;
    std::vector<StatusEntry> dirty;
    std::vector<StatusEntry> allocation;
    Runs runs;
  };
  const std::vector<Row> rows{
      {"clean is unchanged, whatever the allocation",
       {{100, 0}},
       {{50, 3}, {50, 0}},
       {{0, 100, State::unchanged}}},
      {"dirty and zero", {{100, 1}}, {{100, 2}}, {{0, 100, State::zero}}},
      {"dirty and a hole that reads zero", {{100, 1}}, {{100, 3}}, {{0, 100, State::zero}}},
      {"dirty and a hole that may hold anything", {{100, 1}}, {{100, 1}}, {{0, 100, State::data}}},
      {"no allocation is known",
       {{60, 1}, {40, 0}},
       {},
       {{0, 60, State::data}, {60, 40, State::unchanged}}},
      {"no dirty map is known", {}, {{100, 3}}, {}},
      {"cut at different places",
       {{30, 0}, {70, 1}},
       {{50, 3}, {50, 0}},
       {{0, 30, State::unchanged}, {30, 20, State::zero}, {50, 50, State::data}}},
      {"the dirty map ends early", {{30, 1}}, {{100, 0}}, {{0, 30, State::data}}},
      {"the allocation ends early", {{100, 1}}, {{30, 2}}, {{0, 30, State::zero}}},
      {"unknown flags are ignored", {{100, 7}}, {{100, 0xfe}}, {{0, 100, State::zero}}},
      {"unknown flags alone do not make it dirty",
       {{100, 6}},
       {{100, 0}},
       {{0, 100, State::unchanged}}},
  };
  for (const Row& row : rows) {
    std::uint64_t covered = 0;
    EXPECT_EQ(difference(merged(row.dirty, row.allocation, 0, covered), row.runs), "") << row.name;
    EXPECT_EQ(covered, size_of(row.runs)) << row.name;
  }
}

TEST(MergeDirtyAndAllocation, StopsWhereTheSinkHasEnough) {
  const std::vector<StatusEntry> dirty{{10, 1}, {10, 0}, {10, 1}};
  int calls = 0;
  EXPECT_EQ(merge_dirty_and_allocation(dirty, {}, 0, [&](const Extent&) { return ++calls < 2; }),
            10U);
  EXPECT_EQ(calls, 2);
}

/// Cuts per-byte flags into entries at every change and at random places besides.
std::vector<StatusEntry> cut(const std::vector<std::uint64_t>& flags, Random& random) {
  std::vector<StatusEntry> entries;
  for (const std::uint64_t flag : flags) {
    if (entries.empty() || entries.back().flags != flag || random.chance(5))
      entries.push_back({.length = 0, .flags = flag});
    ++entries.back().length;
  }
  return entries;
}

std::vector<std::uint64_t> random_flags(Random& random, std::uint64_t limit) {
  std::vector<std::uint64_t> flags(random.between(1, 400));
  for (std::size_t i = 0; i < flags.size(); ++i)
    flags[i] = i > 0 && random.chance(90) ? flags[i - 1] : random.below(limit);
  return flags;
}

TEST(MergeDirtyAndAllocation, EqualsANaiveModel) {
  Random random = Random::from_environment();
  for (std::uint64_t round = seeds_from_environment(500); round > 0; --round) {
    const auto dirty = random_flags(random, 2);
    const auto allocation = random_flags(random, 4);
    Runs expected;
    for (std::size_t i = 0; i < std::min(dirty.size(), allocation.size()); ++i)
      append(expected, 1,
             dirty[i] == 0              ? State::unchanged
             : (allocation[i] & 2) != 0 ? State::zero
                                        : State::data);
    std::uint64_t covered = 0;
    ASSERT_EQ(difference(merged(cut(dirty, random), cut(allocation, random), 0, covered), expected),
              "");
    EXPECT_EQ(covered, size_of(expected));
  }
}

}  // namespace
}  // namespace nbdelta::testing
