#include <algorithm>
#include <chrono>
#include <fstream>

#include "tests/corrupt/damaged_image.hpp"
#include "tests/corrupt/exercise.hpp"
#include "tests/support/random.hpp"
#include "tests/support/sanitizer.hpp"

namespace nbdelta::testing {
namespace {

/// A range of the file and what it holds.
struct Part {
  std::uint64_t offset;
  std::uint64_t length;
};

/// All that is not data: header, L1, L2, refcounts, bitmap directory, tables.
std::vector<Part> metadata_of(const std::string& path) {
  const Places places(path);
  std::vector<Part> parts{{0, std::min<std::uint64_t>(places.cluster, 1024)},
                          {0, 112},
                          {places.l1, places.l1_entries * 8U},
                          {places.refcount_table, 64}};
  for (std::uint32_t i = 0; i < places.l1_entries; ++i)
    if (const std::uint64_t l2 =
            read_number<std::uint64_t>(path, places.l1 + i * 8) & Places::kOffsetBits)
      parts.push_back({l2, std::min<std::uint64_t>(places.cluster, 4096)});
  if (places.directory != 0) {
    parts.push_back({places.bitmaps_extension, 32});
    parts.push_back({places.directory, places.directory_size});
    parts.push_back({places.bitmap_table, 8});
    parts.push_back({places.bitmap_table, places.cluster});
  }
  return parts;
}

/// Peak memory of this process, bytes.
std::uint64_t peak_memory() {
  std::ifstream status("/proc/self/status");
  std::uint64_t kib = 0;
  for (std::string word; status >> word;)
    if (word == "VmHWM:")
      status >> kib;
  return kib * kKiB;
}

class Mutation : public ::testing::TestWithParam<std::string> {};

/// Numbers that are near to something: limits, other tables, the file's end.
std::uint64_t interesting(Random& random, const std::vector<Part>& parts, std::uint64_t file_size) {
  switch (random.below(8)) {
    case 0:
      return random.pick(parts).offset;
    case 1:
      return random.pick(parts).offset | std::uint64_t{1} << 63;
    case 2:
      return std::uint64_t{1} << random.below(64);
    case 3:
      return (std::uint64_t{1} << random.below(64)) - 1;
    case 4:
      return round_down(file_size, 512) - 512 + random.below(4) * 512;
    case 5:
      return random.below(256);
    case 6:
      return std::uint64_t{1} << 62 | random.next() >> 2;  // a compressed cluster
    default:
      return random.next();
  }
}

/// Thousands of small damages: an Error with the file's name, or it behaves; no crash, no hang, no
/// memory without bound.
TEST_P(Mutation, OfMetadataIsAnErrorOrHarmless) {
  const TempFolder folder;
  const std::string path = folder / "disk.qcow2";
  make_varied_image(path, GetParam());
  const std::vector<std::byte> sound = read_file(path);
  const std::vector<Part> parts = metadata_of(path);
  Random random = Random::from_environment();
  const File file = File::open(path, O_RDWR);
  const std::uint64_t memory_before = peak_memory();
  std::uint64_t failed = 0;
  constexpr int kMutations = kSanitized ? 1000 : 3000;
  for (int i = 0; i < kMutations; ++i) {
    std::vector<Part> changed;
    const std::uint64_t changes = random.chance(70) ? 1 : 1 + random.below(5);
    for (std::uint64_t j = 0; j < changes; ++j) {
      const Part& part = random.pick(parts);
      if (random.chance(50)) {
        const std::uint64_t at = part.offset + random.below(part.length);
        auto byte = static_cast<std::uint8_t>(read_number<std::uint8_t>(path, at));
        byte = random.chance(50) ? static_cast<std::uint8_t>(byte ^ 1U << random.below(8))
                                 : static_cast<std::uint8_t>(random.next());
        write_number<std::uint8_t>(path, at, byte);
        changed.push_back({at, 1});
      } else {
        const std::size_t width = random.chance(30) ? 4 : 8;
        const std::uint64_t at = round_down(part.offset + random.below(part.length), width);
        const std::uint64_t value = interesting(random, parts, sound.size());
        if (width == 4)
          write_number<std::uint32_t>(path, at, static_cast<std::uint32_t>(value));
        else
          write_number<std::uint64_t>(path, at, value);
        changed.push_back({at, width});
      }
    }
    const auto start = std::chrono::steady_clock::now();
    const Exercise result = exercise(path);
    const auto took = std::chrono::steady_clock::now() - start;
    ASSERT_LT(took, std::chrono::seconds(10)) << "mutation " << i;
    for (const std::string& error : result.errors)
      ASSERT_NE(error.find("disk.qcow2: "), std::string::npos) << "mutation " << i << ": " << error;
    if (!result.errors.empty())
      ++failed;
    file.write_at(sound, 0);
    file.resize(sound.size());
  }
  fmt::print("{} mutations, {} with errors; memory grew by {} KiB\n", kMutations, failed,
             (peak_memory() - memory_before) / kKiB);
  EXPECT_GT(failed, static_cast<std::uint64_t>(kMutations) / 20);
  EXPECT_TRUE(peak_memory() - memory_before < 128 * kMiB || kSanitized);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Mutation, ::testing::ValuesIn(kinds()), [](const auto& kind) {
  std::string name = kind.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return std::isalnum(c) == 0; }, '_');
  return name;
});

}  // namespace
}  // namespace nbdelta::testing
