#include "image/extent_map.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "base/units.hpp"
#include "tests/image/runs.hpp"

namespace nbdelta::testing {
namespace {

using image::ExtentMap;
using image::widen_to_clusters;

constexpr State kData = State::data;
constexpr State kUnchanged = State::unchanged;
constexpr State kZero = State::zero;
constexpr State kHole = State::hole;
const std::vector<State> kAllStates{kData, kUnchanged, kZero, kHole};

std::uint64_t data_before(const Runs& runs, std::uint64_t offset) {
  std::uint64_t bytes = 0;
  for (const Extent& run : window(runs, 0, offset))
    bytes += run.state == kData ? run.length : 0;
  return bytes;
}

std::uint64_t alignment_of(const Runs& runs, std::uint64_t limit) {
  std::uint64_t alignment = limit;
  for (const Extent& run : runs)
    while (run.offset % alignment != 0)
      alignment /= 2;
  return alignment;
}

/// What widen_to_clusters promises, cluster by cluster.
Runs widened(const Runs& runs, std::uint64_t cluster_size) {
  Runs result;
  const std::uint64_t size = size_of(runs);
  for (std::uint64_t at = 0; at < size; at += cluster_size) {
    const std::uint64_t length = std::min(cluster_size, size - at);
    const Runs inside = window(runs, at, length);
    const bool zeros = std::all_of(inside.begin(), inside.end(),
                                   [](const Extent& run) { return image::reads_zero(run.state); });
    append(result, length, inside.size() == 1 ? inside[0].state : zeros ? kZero : kData);
  }
  return result;
}

TEST(ExtentMap, EmptyHasNothing) {
  const ExtentMap map;
  EXPECT_EQ(map.size(), 0U);
  EXPECT_TRUE(map.begin().at_end());
  EXPECT_TRUE(map.at(7).at_end());
  EXPECT_EQ(map.at(0).data_before(), 0U);
  EXPECT_EQ(map.alignment(4096), 4096U);
  map.for_each(0, 100, [](const Extent&) {
    ADD_FAILURE();
    return true;
  });
}

TEST(ExtentMap, JoinsNeighboursOfOneState) {
  ExtentMap map;
  map.append(0, kZero);
  map.append(100, kData);
  map.append(0, kZero);
  map.append(412, kData);
  map.append(512, kHole);
  EXPECT_EQ(difference(runs_of(map), {{0, 512, kData}, {512, 512, kHole}}), "");
  EXPECT_EQ(map.extents(kData), 1U);
  EXPECT_EQ(map.extents(kZero), 0U);
  EXPECT_EQ(map.bytes(kHole), 512U);
}

struct LengthRow {
  const char* name;
  std::uint64_t length;
};

class ExtentMapLength : public ::testing::TestWithParam<LengthRow> {};

// Where the encoding of a length takes one more byte, in bytes and in sectors.
INSTANTIATE_TEST_SUITE_P(
    Encoding, ExtentMapLength,
    ::testing::Values(LengthRow{"OneByte", 1}, LengthRow{"FourBitsOfBytes", 15},
                      LengthRow{"FiveBitsOfBytes", 16}, LengthRow{"ElevenBitsOfBytes", 2047},
                      LengthRow{"TwelveBitsOfBytes", 2049}, LengthRow{"OneSector", 512},
                      LengthRow{"FourBitsOfSectors", 15 * 512},
                      LengthRow{"FiveBitsOfSectors", 16 * 512},
                      LengthRow{"ElevenBitsOfSectors", 2047 * 512},
                      LengthRow{"TwelveBitsOfSectors", 2048 * 512},
                      LengthRow{"LongestInBytes", (std::uint64_t{1} << 62) - 1},
                      LengthRow{"LongestInSectors", std::uint64_t{1} << 62}),
    [](const auto& row) { return row.param.name; });

TEST_P(ExtentMapLength, ComesBack) {
  const std::uint64_t length = GetParam().length;
  for (const State state : kAllStates) {
    Runs runs;
    append(runs, 3, state == kData ? kZero : kData);
    append(runs, length, state);
    append(runs, 5, state == kHole ? kZero : kHole);
    const ExtentMap map = map_of(runs);
    EXPECT_EQ(difference(runs_of(map), runs), "");
    EXPECT_EQ(map.at(3 + length - 1).extent(), runs[1]);
  }
}

TEST(ExtentMap, RefusesMoreThanADiskCanHave) {
  ExtentMap map;
  map.append(INT64_MAX, kData);
  EXPECT_THROW(map.append(1, kData), Error);
  EXPECT_THROW(map.append(UINT64_MAX, kZero), Error);
  EXPECT_EQ(map.size(), std::uint64_t{INT64_MAX});
}

TEST(ExtentMap, RefusesMoreMemoryThanItsLimit) {
  constexpr std::size_t kLimit = 64 * 1024;
  ExtentMap map(kLimit);
  try {
    for (std::uint64_t i = 0;; ++i)
      map.append(512, i % 2 == 0 ? kData : kUnchanged);
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), ENOMEM);
  }
  EXPECT_GT(map.extents(kData), kLimit / 4);
  EXPECT_LE(map.memory(), kLimit);
}

TEST(ExtentMap, EqualsANaiveModel) {
  Random random = Random::from_environment();
  for (std::uint64_t round = seeds_from_environment(60); round > 0; --round) {
    const std::uint64_t unit = std::uint64_t{1} << random.below(17);
    const std::uint64_t longest = std::uint64_t{1} << random.between(4, 40);
    const std::uint64_t size = longest * random.between(1, 3000) + random.below(600);
    const Runs runs = random_runs(random, size, unit, longest, kAllStates);
    const ExtentMap map = map_of(runs);
    SCOPED_TRACE(fmt::format("{} runs in {} bytes", runs.size(), size));

    ASSERT_EQ(difference(runs_of(map), runs), "");
    EXPECT_EQ(map.size(), size);
    for (const State state : kAllStates) {
      std::uint64_t bytes = 0;
      std::uint64_t extents = 0;
      for (const Extent& run : runs) {
        bytes += run.state == state ? run.length : 0;
        extents += run.state == state ? 1 : 0;
      }
      EXPECT_EQ(map.bytes(state), bytes);
      EXPECT_EQ(map.extents(state), extents);
    }
    for (const std::uint64_t limit : {std::uint64_t{1}, std::uint64_t{512}, std::uint64_t{65536}})
      EXPECT_EQ(map.alignment(limit), alignment_of(runs, limit));

    for (int i = 0; i < 50; ++i) {
      // Anywhere, and at the edges of a run.
      const Extent& edge = random.pick(runs);
      const std::uint64_t offset =
          std::vector{random.below(size), edge.offset, edge.end() - 1, size - 1}[random.below(4)];
      auto cursor = map.at(offset);
      ASSERT_FALSE(cursor.at_end());
      EXPECT_EQ(window({cursor.extent()}, offset, 1), window(runs, offset, 1));
      EXPECT_EQ(cursor.data_before(), data_before(runs, cursor.extent().offset));
      for (int n = 0; n < 5 && !cursor.at_end(); ++n) {
        EXPECT_EQ(cursor.data_before(), data_before(runs, cursor.extent().offset));
        cursor.next();
      }

      const std::uint64_t length = random.between(1, size - offset) >> random.below(20);
      Runs part;
      map.for_each(offset, length, [&](const Extent& extent) {
        part.push_back(extent);
        return true;
      });
      EXPECT_EQ(difference(part, window(runs, offset, length)), "") << offset << " " << length;
    }
    EXPECT_TRUE(map.at(size).at_end());
    EXPECT_EQ(map.at(size).data_before(), map.bytes(kData));
  }
}

TEST(ExtentMap, JoinedIsWhatOneMapWouldBe) {
  Random random = Random::from_environment();
  for (std::uint64_t round = seeds_from_environment(100); round > 0; --round) {
    ExtentMap joined;
    ExtentMap whole;
    for (std::uint64_t parts = random.between(1, 5); parts > 0; --parts) {
      const Runs runs =
          random_runs(random, kGiB, 512, std::uint64_t{1} << random.between(16, 32), kAllStates);
      ExtentMap part;
      for (const Extent& run : runs) {
        part.append(run.length, run.state);
        whole.append(run.length, run.state);
      }
      joined.append(std::move(part));
    }
    ASSERT_EQ(difference(runs_of(joined), runs_of(whole)), "");
    for (const State state : kAllStates) {
      EXPECT_EQ(joined.bytes(state), whole.bytes(state));
      EXPECT_EQ(joined.extents(state), whole.extents(state));
    }
    EXPECT_EQ(joined.alignment(65'536), whole.alignment(65'536));
    for (int i = 0; i < 50; ++i) {
      const std::uint64_t offset = random.below(whole.size());
      EXPECT_EQ(joined.at(offset).extent(), whole.at(offset).extent());
      EXPECT_EQ(joined.at(offset).data_before(), whole.at(offset).data_before());
    }
  }
}

TEST(ExtentMap, PartsAreTheWholeInOrder) {
  Random random = Random::from_environment();
  for (const std::uint64_t longest : {std::uint64_t{1024}, std::uint64_t{64} * 1024 * 1024}) {
    const Runs runs = random_runs(random, 64 * kMiB, 512, longest, kAllStates);
    const ExtentMap map = map_of(runs);
    Runs joined;
    for (std::size_t part = 0; part < map.parts(); ++part) {
      std::size_t count = 0;
      for (auto run = map.at_part(part);
           run.extent().offset < map.at_part(part + 1).extent().offset; run.next(), ++count)
        joined.push_back(run.extent());
      EXPECT_LE(count, ExtentMap::kMostRunsOfAPart);
    }
    EXPECT_EQ(difference(joined, runs), "");
  }
  EXPECT_EQ(ExtentMap().parts(), 1U);
}

TEST(ExtentMap, IsFoundByItsData) {
  Random random = Random::from_environment();
  for (std::uint64_t round = seeds_from_environment(10); round > 0; --round) {
    const Runs runs =
        random_runs(random, 64 * kMiB, 512, std::uint64_t{1} << random.between(12, 26), kAllStates);
    const ExtentMap map = map_of(runs);
    std::uint64_t before = 0;
    for (const Extent& run : runs) {
      if (run.state != kData)
        continue;
      for (const std::uint64_t byte : {before, before + run.length / 2, before + run.length - 1}) {
        const auto cursor = map.at_data(byte);
        ASSERT_FALSE(cursor.at_end());
        ASSERT_EQ(cursor.extent(), run) << byte;
        ASSERT_EQ(cursor.data_before(), before);
      }
      before += run.length;
    }
    EXPECT_TRUE(map.at_data(before).at_end());
  }
}

std::vector<std::byte> encoded(const ExtentMap& map) {
  std::vector<std::byte> bytes(map.encoded_size());
  map.copy_encoded(bytes, 0);
  return bytes;
}

ExtentMap decoded(const std::vector<std::byte>& bytes) {
  ExtentMap map;
  for (std::size_t at = 0; at < bytes.size(); at += ExtentMap::kBlockBytes)
    map.append_encoded(std::span(bytes).subspan(at).first<ExtentMap::kBlockBytes>());
  return map;
}

TEST(ExtentMap, ComesBackFromItsEncoding) {
  Random random = Random::from_environment();
  for (std::uint64_t round = seeds_from_environment(60); round > 0; --round) {
    const std::uint64_t size = random.between(1, kGiB);
    const Runs runs = random_runs(random, size, std::uint64_t{1} << random.below(17),
                                  std::uint64_t{1} << random.between(12, 40), kAllStates);
    const ExtentMap map = map_of(runs);
    const ExtentMap back = decoded(encoded(map));
    ASSERT_EQ(difference(runs_of(back), runs), "");
    EXPECT_EQ(difference(runs_of(decoded(encoded(back))), runs), "");
    for (const State state : kAllStates) {
      EXPECT_EQ(back.bytes(state), map.bytes(state));
      EXPECT_EQ(back.extents(state), map.extents(state));
    }
    EXPECT_EQ(back.alignment(65'536), map.alignment(65'536));
    for (int i = 0; i < 50; ++i) {
      const std::uint64_t offset = random.below(size);
      EXPECT_EQ(back.at(offset).extent(), map.at(offset).extent());
      EXPECT_EQ(back.at(offset).data_before(), map.at(offset).data_before());
    }
  }
}

/// Nobody's bytes are trusted: what is taken is a map like any other.
TEST(ExtentMap, DamagedEncodingIsRefusedOrIsAMap) {
  Random random = Random::from_environment();
  std::uint64_t refused = 0;
  for (std::uint64_t round = seeds_from_environment(1500); round > 0; --round) {
    const Runs runs = random_runs(random, 4 * kMiB, 1, 1 << 14, kAllStates);
    std::vector<std::byte> bytes = encoded(map_of(runs));
    for (std::uint64_t i = random.between(1, 4); i > 0; --i)
      bytes[random.below(bytes.size())] = static_cast<std::byte>(random.below(256));
    ExtentMap map;
    try {
      map = decoded(bytes);
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EPROTO) << error.what();
      ++refused;
      continue;
    }
    const Runs got = runs_of(map);
    EXPECT_EQ(size_of(got), map.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_GT(got[i].length, 0U);
      ASSERT_TRUE(i == 0 || got[i - 1].state != got[i].state);
    }
  }
  EXPECT_GT(refused, 0U);
}

TEST(ExtentMap, EncodingsThatAreNoMapAreRefused) {
  const auto refusal = [](const std::vector<unsigned>& start) -> std::string {
    std::vector<std::byte> block(ExtentMap::kBlockBytes);
    std::transform(start.begin(), start.end(), block.begin(),
                   [](unsigned byte) { return static_cast<std::byte>(byte); });
    try {
      decoded(block);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal({0x08}), "");  // one sector of data
  EXPECT_NE(refusal({}).find("without runs"), std::string::npos);
  EXPECT_NE(refusal({0x01}).find("is empty"), std::string::npos);
  EXPECT_NE(refusal({0x04}).find("is empty"), std::string::npos);
  EXPECT_NE(refusal({0x80, 0x00}).find("is empty"), std::string::npos);
  EXPECT_NE(refusal({0x08, 0x08}).find("one state"), std::string::npos);
  EXPECT_NE(refusal({0x84, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x08}).find("too long"),
            std::string::npos);
  EXPECT_NE(refusal({0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40}).find("too long"),
            std::string::npos);
  EXPECT_NE(refusal(std::vector<unsigned>(ExtentMap::kBlockBytes, 0x80)).find("does not end"),
            std::string::npos);
  std::vector<unsigned> cut;  // runs of one sector, in turn data and zero
  while (cut.size() < ExtentMap::kBlockBytes)
    cut.push_back(cut.size() % 2 == 0 ? 0x08 : 0x0a);
  EXPECT_EQ(refusal(cut), "");
  cut.back() = 0x8a;
  EXPECT_NE(refusal(cut).find("does not end"), std::string::npos);
}

TEST(ExtentMap, SinkThatHasEnoughGetsNoMore) {
  const ExtentMap map = map_of({{0, 512, kData}, {512, 512, kZero}, {1024, 512, kData}});
  int calls = 0;
  map.for_each(0, 1536, [&](const Extent&) { return ++calls < 2; });
  EXPECT_EQ(calls, 2);
}

TEST(ExtentMap, TenMillionChangedExtentsOfA16TiBDiskTakeLittleMemory) {
  constexpr std::uint64_t kExtents = 10'000'000;
  constexpr std::uint64_t kDisk = 16 * kTiB;
  constexpr std::uint64_t kCluster = 64 * kKiB;
  Random random(1);
  ExtentMap map;
  for (std::uint64_t i = 0; i < kExtents; ++i) {
    const std::uint64_t slot_end = kDisk / kCluster * (i + 1) / kExtents * kCluster;
    const std::uint64_t slot = slot_end - map.size();
    const std::uint64_t changed = kCluster * random.between(1, std::min(slot / kCluster - 1, 4UL));
    const std::uint64_t before = round_down(random.below(slot - changed), kCluster);
    map.append(before == 0 ? kCluster : before, kUnchanged);
    map.append(std::min(changed, slot_end - map.size()), kData);
    map.append(slot_end - map.size(), kUnchanged);
  }
  fmt::print("{} changed extents of a {} disk: {}\n", map.extents(kData), format_size(map.size()),
             format_size(map.memory()));
  EXPECT_GT(map.extents(kData), kExtents * 9 / 10);
  EXPECT_EQ(map.size(), kDisk);
  EXPECT_LT(map.memory(), 64 * kMiB);
}

TEST(WidenToClusters, NamedCases) {
  struct Row {
    const char* name;
    Runs from;
    Runs to;
  };
  const std::vector<Row> rows{
      {"nothing", {}, {}},
      {"whole clusters stay",
       {{0, 4096, kUnchanged}, {4096, 8192, kZero}},
       {{0, 4096, kUnchanged}, {4096, 8192, kZero}}},
      {"an end inside a cluster", {{0, 100, kUnchanged}, {100, 8092, kData}}, {{0, 8192, kData}}},
      {"zero beside unchanged is data",
       {{0, 512, kZero}, {512, 7680, kUnchanged}},
       {{0, 4096, kData}, {4096, 4096, kUnchanged}}},
      {"zero beside hole is zero",
       {{0, 512, kZero}, {512, 7680, kHole}},
       {{0, 4096, kZero}, {4096, 4096, kHole}}},
      {"the disk's end cuts the last cluster", {{0, 4196, kZero}}, {{0, 4196, kZero}}},
      {"a mixture in the last cluster",
       {{0, 4196, kUnchanged}, {4196, 10, kZero}},
       {{0, 4096, kUnchanged}, {4096, 110, kData}}},
      {"smaller than a cluster", {{0, 7, kUnchanged}}, {{0, 7, kUnchanged}}},
  };
  for (const Row& row : rows)
    EXPECT_EQ(difference(runs_of(widen_to_clusters(map_of(row.from), 4096)), row.to), "")
        << row.name;
}

TEST(WidenToClusters, EqualsANaiveModel) {
  Random random = Random::from_environment();
  for (std::uint64_t round = seeds_from_environment(300); round > 0; --round) {
    const std::uint64_t cluster = std::uint64_t{1} << random.between(9, 16);
    const std::uint64_t size = random.between(1, 64 * cluster);
    const std::uint64_t unit = random.chance(50) ? cluster : cluster / 8;
    const Runs runs = random_runs(random, size, unit, 8 * cluster, kAllStates);
    const ExtentMap map = widen_to_clusters(map_of(runs), cluster);
    ASSERT_EQ(difference(runs_of(map), widened(runs, cluster)), "")
        << "clusters of " << cluster << ", size " << size;
  }
}

}  // namespace
}  // namespace nbdelta::testing
