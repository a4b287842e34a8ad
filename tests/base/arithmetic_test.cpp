#include "base/arithmetic.hpp"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <string>

namespace nbdelta {
namespace {

constexpr std::uint64_t kMax = UINT64_MAX;

template <class Action>
void expect_overflow(Action action) {
  try {
    action();
    ADD_FAILURE() << "no overflow was noticed";
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), EOVERFLOW);
    EXPECT_TRUE(std::string(error.what()).starts_with("disk.qcow2: ")) << error.what();
  }
}

TEST(Arithmetic, PowersOfTwo) {
  EXPECT_FALSE(is_power_of_two(0));
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t power = std::uint64_t{1} << bit;
    EXPECT_TRUE(is_power_of_two(power));
    if (bit > 1) {
      EXPECT_FALSE(is_power_of_two(power + 1));
      EXPECT_FALSE(is_power_of_two(power - 1));
    }
  }
}

TEST(Arithmetic, Rounding) {
  struct Row {
    std::uint64_t value, unit, down, up, units;
  };
  constexpr Row kRows[] = {
      {0, 1, 0, 0, 0},
      {0, 512, 0, 0, 0},
      {1, 512, 0, 512, 1},
      {511, 512, 0, 512, 1},
      {512, 512, 512, 512, 1},
      {513, 512, 512, 1024, 2},
      {kMax - 511, 512, kMax - 511, kMax - 511, kMax / 512},
  };
  for (const Row& row : kRows) {
    EXPECT_EQ(round_down(row.value, row.unit), row.down) << row.value;
    EXPECT_EQ(round_up(row.value, row.unit), row.up) << row.value;
    EXPECT_EQ(checked_round_up(row.value, row.unit, "disk.qcow2"), row.up) << row.value;
    EXPECT_EQ(div_round_up(row.value, row.unit), row.units) << row.value;
  }
}

TEST(Arithmetic, DivRoundUpDoesNotOverflow) {
  EXPECT_EQ(div_round_up(kMax, 1), kMax);
  EXPECT_EQ(div_round_up(kMax, 2), std::uint64_t{1} << 63);
  EXPECT_EQ(div_round_up(kMax, kMax), 1U);
  EXPECT_EQ(div_round_up(10, 3), 4U);
}

TEST(Arithmetic, SumsAtTheEdge) {
  EXPECT_EQ(checked_add(kMax, 0, "disk.qcow2"), kMax);
  EXPECT_EQ(checked_add(kMax - 1, 1, "disk.qcow2"), kMax);
  expect_overflow([] { checked_add(kMax, 1, "disk.qcow2"); });
  expect_overflow([] { checked_add(kMax, kMax, "disk.qcow2"); });
}

TEST(Arithmetic, ProductsAtTheEdge) {
  constexpr std::uint64_t kHalf = std::uint64_t{1} << 32;
  EXPECT_EQ(checked_mul(kMax, 0, "disk.qcow2"), 0U);
  EXPECT_EQ(checked_mul(kMax, 1, "disk.qcow2"), kMax);
  EXPECT_EQ(checked_mul(kHalf, kHalf - 1, "disk.qcow2"), kHalf * (kHalf - 1));
  expect_overflow([] { checked_mul(kHalf, kHalf, "disk.qcow2"); });
}

TEST(Arithmetic, RoundingUpPastTheEnd) {
  expect_overflow([] { checked_round_up(kMax - 510, 512, "disk.qcow2"); });
  expect_overflow([] { checked_round_up(kMax, 65536, "disk.qcow2"); });
  EXPECT_EQ(checked_round_up(kMax, 1, "disk.qcow2"), kMax);
}

}  // namespace
}  // namespace nbdelta
