#include "base/units.hpp"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

namespace nbdelta {
namespace {

TEST(Units, SizesThatAreUnderstood) {
  struct Row {
    const char* text;
    std::uint64_t bytes;
  };
  constexpr Row kRows[] = {
      {"0", 0},
      {"1", 1},
      {"512B", 512},
      {"512b", 512},
      {"64k", 64 * kKiB},
      {"64K", 64 * kKiB},
      {"64KiB", 64 * kKiB},
      {"64KB", 64 * kKiB},
      {"3M", 3 * kMiB},
      {"3MiB", 3 * kMiB},
      {"2g", 2 * kGiB},
      {"16T", 16 * kTiB},
      {"1P", 1024 * kTiB},
      {"15E", 15 * 1024 * 1024 * kTiB},
      {"007", 7},
      {"18446744073709551615", UINT64_MAX},
  };
  for (const Row& row : kRows)
    EXPECT_EQ(parse_size(row.text, "--rate"), row.bytes) << row.text;
}

TEST(Units, SizesThatAreRefusedByName) {
  for (const char* text :
       {"",   " ",   "K",     "-1",  "+1", "1.5G", "1 K", "1KK", "1Kib", "1KiBs", "0x10",
        "1Z", "ten", "1,000", "1K ", " 1", "1i",   "1iB", "Bx",  "1Bx",  "1KBx"}) {
    try {
      parse_size(text, "--rate");
      ADD_FAILURE() << "'" << text << "' was understood";
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EINVAL) << text;
      EXPECT_TRUE(std::string(error.what()).starts_with("--rate: '" + std::string(text) + "'"))
          << error.what();
    }
  }
}

TEST(Units, SizesThatDoNotFit) {
  for (const char* text : {"16E", "18446744073709551615K", "17592186044416M"}) {
    try {
      parse_size(text, "--rate");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EOVERFLOW) << text;
    }
  }
  EXPECT_THROW(parse_size("18446744073709551616", "--rate"), Error);
}

TEST(Units, SizesForPeople) {
  struct Row {
    std::uint64_t bytes;
    const char* text;
  };
  constexpr Row kRows[] = {
      {0, "0 B"},
      {1, "1 B"},
      {1023, "1023 B"},
      {kKiB, "1.00 KiB"},
      {1536, "1.50 KiB"},
      {10 * kKiB, "10.0 KiB"},
      {100 * kKiB, "100 KiB"},
      {kMiB - 1, "1.00 MiB"},
      {kGiB + kGiB / 2, "1.50 GiB"},
      {16 * kTiB, "16.0 TiB"},
      {UINT64_MAX, "16.0 EiB"},
  };
  for (const Row& row : kRows)
    EXPECT_EQ(format_size(row.bytes), row.text) << row.bytes;
}

TEST(Units, DurationsForPeople) {
  struct Row {
    double seconds;
    const char* text;
  };
  constexpr Row kRows[] = {
      {0, "0.00 s"},          {0.4249, "0.42 s"},   {9.99, "9.99 s"},
      {42, "42 s"},           {60, "1 min 00 s"},   {185, "3 min 05 s"},
      {3599, "59 min 59 s"},  {3600, "1 h 00 min"}, {2 * 3600 + 7 * 60 + 59, "2 h 07 min"},
      {90000, "25 h 00 min"},
  };
  for (const Row& row : kRows)
    EXPECT_EQ(format_duration(row.seconds), row.text) << row.seconds;
}

TEST(Units, DurationsRoundAcrossTheUnits) {
  EXPECT_EQ(format_duration(9.999), "10 s");
  EXPECT_EQ(format_duration(59.9), "1 min 00 s");
  EXPECT_EQ(format_duration(3599.9), "1 h 00 min");
}

}  // namespace
}  // namespace nbdelta
