#include "sim/record.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
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
    return check_after_crash(path(),
                             {{.name = "it", .images = {image("vda", numbers)}, .session = {}}})
        .front()
        .exact;
  };
  EXPECT_TRUE(may_be({4, 0, 5, 0}));
  EXPECT_TRUE(may_be({3, 0, 0, 0}));
  EXPECT_TRUE(may_be({2, 0, 0, 0}));
  EXPECT_FALSE(may_be({1, 0, 0, 0}));  // flushed away
  EXPECT_FALSE(may_be({0, 0, 0, 0}));
  EXPECT_FALSE(may_be({4, 5, 0, 0}));  // never written there
}

/// Of what Error says; "" where there is none.
template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST_F(Records, WhereNoGuestWasStartedNothingIsExact) {
  const std::string head(kHead);
  for (const std::string& text : {std::string(), head.substr(0, head.find("10 start"))}) {
    std::ofstream(path()) << text;
    const std::vector<CheckedPoint> points{
        {.name = "it", .images = {image("vda", {0, 0, 0, 0})}, .session = {}}};
    const std::string expected =
        path() + ": has no start of a guest: there is nothing to compare with";
    EXPECT_EQ(error_of([&] { check_points(path(), points); }), expected) << text;
    EXPECT_EQ(error_of([&] { check_after_crash(path(), points); }), expected) << text;
  }
}

TEST_F(Records, APointWithoutImagesIsNotExact) {
  write_record("21 switch nbdelta-00000001-2-0 nbdelta-00000001-2-1\n");
  const std::vector<CheckedPoint> points{
      {.name = "it", .images = {}, .session = "nbdelta-00000001-2-"}};
  for (const auto check : {check_points, check_after_crash}) {
    const CheckResult result = check(path(), points).front();
    EXPECT_FALSE(result.exact);
    EXPECT_EQ(result.text, "nothing was compared: its manifest names no image");
  }
}

TEST_F(Records, APointNamesTheDisksThatItsSessionLeftOut) {
  write_record(
      "20 write 1 3 1 1\n"
      "21 switch nbdelta-00000001-2-0\n");
  const std::string session = "nbdelta-00000001-2-";
  const CheckResult exact = check(session, {image("vdb", {0, 0, 0, 1})});
  EXPECT_TRUE(exact.exact);
  EXPECT_EQ(exact.text, "exact: switch 1, after write 1; not compared: vda");
  const CheckResult other = check(session, {image("vdb", {0, 0, 0, 0})});
  EXPECT_FALSE(other.exact);
  EXPECT_THAT(other.text, ::testing::EndsWith("; not compared: vda"));
  EXPECT_EQ(check("", {image("vdb", {0, 0, 0, 1})}).text,
            "exact: the end of the record, after write 1");
}

TEST_F(Records, APointHasAllDisksOfItsSwitch) {
  write_record("21 switch nbdelta-00000001-2-0 nbdelta-00000001-2-1\n");
  const CheckResult result = check("nbdelta-00000001-2-", {image("vdb", {0, 0, 0, 0})});
  EXPECT_FALSE(result.exact);
  EXPECT_EQ(result.text, "has 1 disks; switch 1 had 2; not compared: vda");
}

/// It is not the record's line that is wrong there.
TEST_F(Records, AnImagesErrorHasNoPlaceInTheRecord) {
  write_record("");
  const CheckedImage longer = image("vda", {0, 0, 0, 0, 0});
  EXPECT_EQ(error_of([&] { check("", {longer}); }),
            longer.path + ": has 20480 bytes; the disk vda has 16384");
  EXPECT_EQ(error_of([&] { check("", {{.disk = "vdc", .path = longer.path}}); }),
            longer.path + ": the record knows no disk 'vdc'");
}

TEST_F(Records, AnImageIsTakenForWhatItsNameSays) {
  write_record("");
  const std::string raw = image("vda", {0, 0, 0, 0}).path;
  const std::string renamed = folder_ / "vda.img";
  std::filesystem::rename(raw, renamed);
  EXPECT_EQ(error_of([&] { check_points(path(), points_at({"vda=" + renamed})); }),
            renamed + ": is not a qcow2 image; a raw one's name must end with .raw");
  std::filesystem::rename(renamed, raw);
  EXPECT_TRUE(check_points(path(), points_at({"vda=" + raw})).front().exact);
  EXPECT_EQ(error_of([&] { points_at({"vda="}); }), "vda=: names no image: expected DISK=IMAGE");
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
