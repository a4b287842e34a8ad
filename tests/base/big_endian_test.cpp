#include "base/big_endian.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

namespace nbdelta {
namespace {

TEST(BigEndian, MostSignificantByteFirst) {
  const be64 number(0x0102030405060708);
  constexpr std::array<unsigned char, 8> kBytes{1, 2, 3, 4, 5, 6, 7, 8};
  EXPECT_EQ(std::memcmp(&number, kBytes.data(), kBytes.size()), 0);
  EXPECT_EQ(std::uint64_t{number}, 0x0102030405060708U);
}

TEST(BigEndian, AllWidthsKeepTheirExtremes) {
  for (const std::uint16_t value :
       std::initializer_list<std::uint16_t>{0, 1, 0xff, 0x100, 0x8000, 0xffff})
    EXPECT_EQ(std::uint16_t{be16(value)}, value);
  for (const std::uint32_t value : {0U, 1U, 0xffU, 0x1234'5678U, 0x8000'0000U, 0xffff'ffffU})
    EXPECT_EQ(std::uint32_t{be32(value)}, value);
  for (const std::uint64_t value : {std::uint64_t{0}, std::uint64_t{1} << 63, UINT64_MAX})
    EXPECT_EQ(std::uint64_t{be64(value)}, value);
}

TEST(BigEndian, IsZeroByDefault) {
  EXPECT_EQ(std::uint64_t{be64()}, 0U);
  EXPECT_EQ(std::uint16_t{be16()}, 0U);
}

TEST(BigEndian, StructuresOfThemHaveNoGapsAndCanBeCopied) {
  struct OnDisk {
    be32 magic;
    be16 flags;
    be64 offset;
  };
  static_assert(sizeof(OnDisk) == 14 && alignof(OnDisk) == 1);
  static_assert(std::is_trivially_copyable_v<OnDisk>);
  constexpr std::array<unsigned char, 14> kBytes{'Q', 'F', 'I', 0xfb, 0x80, 0x01, 0,
                                                 0,   0,   0,   0,    0,    1,    2};
  OnDisk structure;
  std::memcpy(&structure, kBytes.data(), sizeof structure);
  EXPECT_EQ(std::uint32_t{structure.magic}, 0x514649fbU);
  EXPECT_EQ(std::uint16_t{structure.flags}, 0x8001U);
  EXPECT_EQ(std::uint64_t{structure.offset}, 0x102U);
}

}  // namespace
}  // namespace nbdelta
