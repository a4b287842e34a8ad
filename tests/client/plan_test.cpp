#include "client/pull/plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/arithmetic.hpp"
#include "tests/support/random.hpp"

namespace nbdelta::client::pull {
namespace {

using image::ExtentMap;
using image::State;
using nbdelta::testing::Random;

ExtentMap map_of(const std::vector<image::Extent>& runs) {
  ExtentMap map;
  for (const image::Extent& run : runs)
    map.append(run.length, run.state);
  return map;
}

std::vector<Operation> all(const ExtentMap& map, const Limits& limits) {
  std::vector<Operation> operations;
  Plan plan(map, limits);
  while (const auto operation = plan.next())
    operations.push_back(*operation);
  return operations;
}

struct Expected {
  Operation::Kind kind;
  std::uint64_t offset;
  std::uint64_t length;
};

struct Row {
  const char* name;
  std::vector<image::Extent> runs;  // offsets are not looked at
  Limits limits;
  std::vector<Expected> expected;
};

constexpr auto kRead = Operation::Kind::read;
constexpr auto kZero = Operation::Kind::zero;

class PlanTable : public ::testing::TestWithParam<Row> {};

TEST_P(PlanTable, IsAsExpected) {
  const Row& row = GetParam();
  const ExtentMap map = map_of(row.runs);
  const std::vector<Operation> got = all(map, row.limits);
  ASSERT_EQ(got.size(), row.expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].kind, row.expected[i].kind) << i;
    EXPECT_EQ(got[i].offset, row.expected[i].offset) << i;
    EXPECT_EQ(got[i].length, row.expected[i].length) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Rows, PlanTable,
    ::testing::Values(
        Row{"empty", {}, {.request_size = 100, .zero_size = 100}, {}},
        Row{"unchanged", {{0, 50, State::unchanged}}, {.request_size = 100, .zero_size = 100}, {}},
        Row{"split",
            {{0, 30, State::unchanged}, {0, 200, State::data}},
            {.request_size = 100, .zero_size = 100},
            {{kRead, 30, 70}, {kRead, 100, 100}, {kRead, 200, 30}}},
        Row{"zero",
            {{0, 150, State::zero}, {0, 20, State::hole}},
            {.request_size = 100, .zero_size = 100},
            {{kZero, 0, 100}, {kZero, 100, 50}, {kZero, 150, 20}}},
        Row{"bridge",
            {{0, 10, State::data},
             {0, 5, State::unchanged},
             {0, 10, State::data},
             {0, 6, State::unchanged},
             {0, 10, State::data}},
            {.request_size = 100, .zero_size = 100, .minimum_block = 1, .bridge = 5},
            {{kRead, 0, 25}, {kRead, 31, 10}}},
        Row{"bridge over two runs",
            {{0, 10, State::data},
             {0, 2, State::unchanged},
             {0, 2, State::zero},
             {0, 10, State::data}},
            {.request_size = 100, .zero_size = 100, .minimum_block = 1, .bridge = 4},
            {{kRead, 0, 24}}},
        Row{"bridge ends at the window",
            {{0, 95, State::data}, {0, 5, State::unchanged}, {0, 10, State::data}},
            {.request_size = 100, .zero_size = 100, .minimum_block = 1, .bridge = 50},
            {{kRead, 0, 95}, {kRead, 100, 10}}},
        Row{"one block is read once",
            {{0, 1, State::data},
             {0, 6, State::unchanged},
             {0, 1, State::data},
             {0, 8, State::unchanged}},
            {.request_size = 64, .zero_size = 64, .minimum_block = 8},
            {{kRead, 0, 8}}}),
    [](const auto& param) {
      std::string name = param.param.name;
      std::replace(name.begin(), name.end(), ' ', '_');
      return name;
    });

ExtentMap random_map(Random& random, std::uint64_t size) {
  ExtentMap map;
  while (map.size() < size) {
    const std::uint64_t longest = random.pick(std::vector<std::uint64_t>{3, 40, 700});
    map.append(std::min(random.between(1, longest), size - map.size()),
               static_cast<State>(random.below(4)));
  }
  return map;
}

/// What the documentation of Plan promises, byte by byte.
void check(const ExtentMap& map, const Limits& limits) {
  std::vector<State> disk;
  for (auto run = map.begin(); !run.at_end(); run.next())
    disk.insert(disk.end(), run.extent().length, run.extent().state);
  std::vector<int> settled(disk.size());
  std::uint64_t before = 0;
  for (const Operation& operation : all(map, limits)) {
    ASSERT_GE(operation.offset, before);
    ASSERT_GT(operation.length, 0U);
    before = operation.end();
    ASSERT_LE(operation.end(), disk.size());
    ASSERT_LE(operation.first.extent().offset, operation.offset);
    ASSERT_LT(operation.offset, operation.first.extent().end());
    const bool read = operation.kind == kRead;
    const std::uint64_t window = read ? limits.request_size : limits.zero_size;
    ASSERT_EQ(operation.offset / window, (operation.end() - 1) / window);
    if (read) {
      ASSERT_EQ(disk[operation.offset], State::data);
      ASSERT_EQ(disk[operation.end() - 1], State::data);
      const ReadRange range = read_range(operation, limits, disk.size());
      ASSERT_EQ(range.offset % limits.minimum_block, 0U);
      ASSERT_TRUE(range.length % limits.minimum_block == 0 ||
                  range.offset + range.length == disk.size());
      ASSERT_LE(range.length, limits.request_size);
      ASSERT_LE(range.offset, operation.offset);
      ASSERT_GE(range.offset + range.length, operation.end());
    }
    std::uint64_t gap = 0;
    for (std::uint64_t i = operation.offset; i < operation.end(); ++i) {
      ++settled[i];
      gap = disk[i] == State::data ? 0 : gap + 1;
      if (read) {
        ASSERT_LE(gap, std::max(limits.bridge, limits.minimum_block - 1));
      } else {
        ASSERT_TRUE(image::reads_zero(disk[i]));
      }
    }
  }
  for (std::size_t i = 0; i < disk.size(); ++i) {
    if (disk[i] == State::unchanged)
      ASSERT_LE(settled[i], 1) << i;
    else
      ASSERT_EQ(settled[i], 1) << i;
  }
}

TEST(Plan, SettlesEveryByteOnce) {
  Random random = Random::from_environment();
  for (int round = 0; round < 400 && !::testing::Test::HasFatalFailure(); ++round) {
    const std::uint64_t block = std::uint64_t{1} << random.below(6);
    const Limits limits{.request_size = block * random.between(1, 20),
                        .zero_size = block * random.between(1, 50),
                        .minimum_block = block,
                        .bridge = random.chance(50) ? 0 : random.below(100)};
    check(random_map(random, random.between(1, 5000)), limits);
  }
}

/// What the documentation of PackedPlan promises.
void check_packed(const ExtentMap& map, const Limits& limits) {
  PackedPlan plan(map, limits);
  std::uint64_t zeroed = 0;
  std::uint64_t read = 0;
  auto zeros = map.begin();
  while (const auto operation = plan.next()) {
    ASSERT_GT(operation->length, 0U);
    ASSERT_LE(operation->first.extent().offset, operation->offset);
    ASSERT_LT(operation->offset, operation->first.extent().end());
    if (operation->kind == kZero) {
      ASSERT_EQ(read, 0U);
      while (!image::reads_zero(zeros.extent().state) || zeros.extent().end() <= operation->offset)
        zeros.next();
      ASSERT_GE(operation->offset, zeros.extent().offset);
      ASSERT_LE(operation->end(), zeros.extent().end());
      ASSERT_EQ(operation->offset / limits.zero_size, (operation->end() - 1) / limits.zero_size);
      zeroed += operation->length;
      continue;
    }
    ASSERT_EQ(operation->first.extent().state, State::data);
    ASSERT_EQ(data_before(*operation), read);
    ASSERT_EQ(read / limits.request_size, (read + operation->length - 1) / limits.request_size);
    read += operation->length;
  }
  ASSERT_EQ(read, map.bytes(State::data));
  ASSERT_EQ(zeroed, map.bytes(State::zero) + map.bytes(State::hole));
}

TEST(PackedPlan, SettlesEveryByteOnce) {
  Random random = Random::from_environment();
  for (int round = 0; round < 400 && !::testing::Test::HasFatalFailure(); ++round)
    check_packed(random_map(random, random.between(1, 5000)),
                 {.request_size = random.between(1, 300), .zero_size = random.between(1, 300)});
}

TEST(Plan, IsForDisksOfAnySize) {
  constexpr std::uint64_t kLast = (std::uint64_t{1} << 62) + 12345;
  ExtentMap map;
  map.append(kLast, State::unchanged);
  map.append(1, State::data);
  const auto operations =
      all(map, {.request_size = 256 * kKiB, .zero_size = kGiB, .minimum_block = 512});
  ASSERT_EQ(operations.size(), 1U);
  EXPECT_EQ(operations[0].offset, kLast);
  EXPECT_EQ(operations[0].length, 1U);
}

}  // namespace
}  // namespace nbdelta::client::pull
