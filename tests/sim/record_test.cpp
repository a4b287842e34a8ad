#include "sim/record.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "sim/check.hpp"
#include "sim/stamp.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::sim {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using testing::TempFolder;

constexpr const char* kHead = R"(nbdelta-sim record 1
disk vda raw 4 /vm/vda.raw
disk vdb raw 4 /vm/vdb.raw
10 start
)";

class Records : public ::testing::Test {
 protected:
  std::string path() const { return folder_ / "record.txt"; }
  void write_record(const std::string& lines) const { std::ofstream(path()) << kHead << lines; }

  /// An image with these writes' numbers in its granules.
  CheckedImage image(const std::string& disk, const std::vector<WriteNumber>& numbers) const {
    const std::string name = folder_ / (disk + ".raw");
    const File file = File::open(name, O_RDWR | O_CREAT | O_TRUNC);
    GranuleBytes bytes;
    for (std::uint64_t i = 0; i < numbers.size(); ++i) {
      fill_with_stamp(bytes, i, numbers[i]);
      file.write_at(bytes, i * kFileGranule);
    }
    return {.disk = disk, .path = name, .format = "raw"};
  }
  CheckResult check(const std::string& session, std::vector<CheckedImage> images) const {
    return check_points(path(), {{.name = "it", .images = std::move(images), .session = session}})
        .front();
  }

  TempFolder folder_;
};

/// One that failed may have had the same number.
TEST_F(Records, OfASessionTheLastSwitchCounts) {
  write_record(
      "20 write 0 0 2 1\n"
      "21 switch nbdelta-00000001-2-0 nbdelta-00000001-2-1\n"
      "22 write 1 3 1 2\n"
      "23 switch nbdelta-00000001-2-0 nbdelta-00000001-2-1\n"
      "24 write 0 0 1 3\n"
      "25 switch nbdelta-00000001-22-0 nbdelta-00000001-22-1\n");
  const std::string session = "nbdelta-00000001-2-";
  EXPECT_EQ(check(session, {image("vda", {1, 1, 0, 0}), image("vdb", {0, 0, 0, 2})}).text,
            "exact: switch 2, after write 2");
  const CheckResult earlier =
      check(session, {image("vda", {1, 1, 0, 0}), image("vdb", {0, 0, 0, 0})});
  EXPECT_FALSE(earlier.exact);
  EXPECT_EQ(earlier.text,
            "1 granules differ from switch 2; the first: vdb at 0x3000 has zeros, not write 2");
  EXPECT_FALSE(check(session, {image("vda", {3, 1, 0, 0}), image("vdb", {0, 0, 0, 2})}).exact);
  EXPECT_THAT(check("nbdelta-00000001-9-", {image("vda", {0, 0, 0, 0})}).text,
              StartsWith("the record has no switch"));
}

/// Each disk of another switch is no instant.
TEST_F(Records, APointIsOneInstantOfAllDisks) {
  write_record(
      "20 write 0 0 1 1\n"
      "21 switch a-0 a-1\n"
      "22 write 0 0 1 2\n"
      "22 write 1 0 1 3\n"
      "23 switch b-0 b-1\n"
      "24 zero 1 0 2\n");
  EXPECT_EQ(check("", {image("vda", {1, 0, 0, 0}), image("vdb", {0, 0, 0, 0})}).text,
            "exact: switch 1, after write 1");
  EXPECT_EQ(check("", {image("vda", {2, 0, 0, 0}), image("vdb", {3, 0, 0, 0})}).text,
            "exact: switch 2, after write 3");
  EXPECT_EQ(check("", {image("vda", {2, 0, 0, 0}), image("vdb", {0, 0, 0, 0})}).text,
            "exact: the end of the record, after write 3");
  EXPECT_FALSE(check("", {image("vda", {1, 0, 0, 0}), image("vdb", {3, 0, 0, 0})}).exact);
}

TEST_F(Records, AStampAtAnotherPlaceIsNotTheWrite) {
  write_record("20 write 0 0 2 1\n");
  const CheckedImage moved = image("vda", {1, 1, 0, 0});
  GranuleBytes bytes;
  fill_with_stamp(bytes, 1, 1);
  File::open(moved.path, O_WRONLY).write_at(bytes, 0);
  EXPECT_THAT(check("", {moved}).text, HasSubstr("vda at 0x0 has bytes that are no write's"));
}

/// What was not flushed may be there or not; what was written over may not come back.
TEST_F(Records, ACrashMayLoseWhatWasNotFlushed) {
  write_record(
      "20 write 0 0 1 1\n"
      "21 write 0 0 1 2\n"
      "22 flush 0\n"
      "23 write 0 0 1 3\n"
      "24 write 0 0 1 4\n"
      "25 zero 0 1 1\n"
      "26 write 0 2 1 5\n"
      "27 writ");
  const auto may_be = [&](std::vector<WriteNumber> numbers) {
    return check_after_crash(path(), image("vda", numbers)).exact;
  };
  EXPECT_TRUE(may_be({4, 0, 5, 0}));
  EXPECT_TRUE(may_be({3, 0, 0, 0}));
  EXPECT_TRUE(may_be({2, 0, 0, 0}));
  EXPECT_FALSE(may_be({1, 0, 0, 0}));  // flushed away
  EXPECT_FALSE(may_be({0, 0, 0, 0}));
  EXPECT_FALSE(may_be({4, 5, 0, 0}));  // never written there
}

TEST_F(Records, LinesThatMakeNoSenseAreRefusedWithTheirPlace) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"20 write 2 0 1 1\n", "'2' is no number below 2"},
      {"20 write 0 4 1 1\n", "'4' is no number below 4"},
      {"20 write 0 3 2 1\n", "'2' is no number below 2"},
      {"20 write 0 0 1 x\n", "'x' is no number"},
      {"20 wrote 0 0 1 1\n", "'wrote' is not known"}};
  for (const auto& [line, why] : cases) {
    write_record(line);
    try {
      Replay().run(path());
      ADD_FAILURE() << line;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("record.txt:5: " + why));
    }
  }
}

TEST_F(Records, ARecordGoesOnAfterACutLineAndOnlyForItsDisks) {
  write_record("20 write 0 0 1 1\n21 wri");
  client::RealClock clock;
  std::vector<RecordedDisk> disks{
      {.name = "vda", .path = "/vm/vda.raw", .format = "raw", .granules = 4},
      {.name = "vdb", .path = "/vm/vdb.raw", .format = "raw", .granules = 4}};
  Record(path(), disks, clock).write(1, 2, 1, 7);
  Replay replay;
  replay.run(path());
  EXPECT_EQ(replay.contents[0][0], 1U);
  EXPECT_EQ(replay.contents[1][2], 7U);
  disks[1].granules = 8;
  EXPECT_THROW(Record(path(), disks, clock), Error);
}

}  // namespace
}  // namespace nbdelta::sim
