#include <gmock/gmock.h>

#include <algorithm>
#include <cctype>

#include "tests/corrupt/damaged_image.hpp"
#include "tests/corrupt/exercise.hpp"
#include "tests/support/sanitizer.hpp"

namespace nbdelta::testing {
namespace {

class Corrupt : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    make_varied_image(path, GetParam(), 64 * kKiB);
    contents = contents_of(path);
    bytes = read_file(path);
  }

  /// The path, the file whole again.
  std::string restored() const {
    write_file(path, bytes);
    return path;
  }

  const TempFolder folder;
  const std::string path = folder / "disk.qcow2";
  std::vector<std::byte> contents;
  std::vector<std::byte> bytes;
};

/// Each length must give an error that names the file; what can be read all the same is right.
TEST_P(Corrupt, TruncatedAtEveryLength) {
  fmt::print("{} bytes\n", bytes.size());
  ASSERT_THAT(exercise(path, contents).errors, ::testing::IsEmpty());
  const File file = File::open(path, O_RDWR);
  std::uint64_t step = bytes.size() > 100'000 ? 5 : 1;
  if (kSanitized)
    step *= 5;
  std::uint64_t harmless = bytes.size();  // free clusters and refcounts at the end may go
  for (std::uint64_t length = bytes.size() - step; length < bytes.size(); length -= step) {
    file.resize(length);
    const Exercise result = exercise(path, contents);
    for (const std::string& error : result.errors)
      ASSERT_THAT(error, ::testing::HasSubstr(path + ": ")) << "length " << length;
    if (result.errors.empty()) {
      ASSERT_EQ(harmless, length + step) << "a longer file is refused, this one is not";
      harmless = length;
    }
  }
  fmt::print("{} bytes at the end are not needed to read\n", bytes.size() - harmless);
  EXPECT_LT(bytes.size() - harmless, 8 * Places(restored()).cluster);
}

TEST_P(Corrupt, FileThatIsCutWhileItIsOpen) {
  const File file = File::open(path, O_RDWR);
  std::vector<std::uint64_t> lengths;
  for (std::uint64_t length = 0; length < bytes.size(); length += bytes.size() / 500 + 1)
    lengths.push_back(length);
  for (std::uint64_t half = 8; half < 64; half += 16)  // of an extended L2 entry
    lengths.push_back(Places(path).l2 + half);
  for (const std::uint64_t length : lengths) {
    const image::Disk disk = open_unlocked(path);
    file.resize(length);
    Exercise result;
    exercise_open(disk, contents, result);
    for (const std::string& error : result.errors)
      ASSERT_THAT(error, ::testing::HasSubstr(path + ": ")) << "length " << length;
    file.write_at(bytes, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Corrupt, ::testing::ValuesIn(kinds()), [](const auto& kind) {
  std::string name = kind.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return std::isalnum(c) == 0; }, '_');
  return name;
});

}  // namespace
}  // namespace nbdelta::testing
