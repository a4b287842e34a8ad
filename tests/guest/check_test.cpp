#include "tests/guest/check.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/file.hpp"
#include "tests/guest/stamp.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t kDiskSize = 256 * 1024;
constexpr std::uint64_t kBlock = kWriteLength;

/// A writer whose every operation is on the disks at once, or is not, as the test wants it.
class CheckTest : public ::testing::Test {
 protected:
  enum class Applied { yes, no };
  enum class Ends { yes, no };

  CheckTest() {
    for (const std::string& path : disks_)
      File::open(path, O_WRONLY | O_CREAT).resize(kDiskSize);
  }

  void write(std::uint64_t disk, std::uint64_t offset, Applied applied = Applied::yes,
             Ends ends = Ends::yes) {
    log("write", disk, offset, kWriteLength, ends);
    if (applied == Applied::yes)
      put(disk, offset, sequence_);
  }
  void clear(const char* kind, std::uint64_t disk, std::uint64_t offset,
             Applied applied = Applied::yes) {
    log(kind, disk, offset, kZeroLength, Ends::yes);
    if (applied == Applied::yes)
      put_bytes(disk, offset, std::vector<std::byte>(kZeroLength));
  }
  /// Puts a block on a disk that nobody logs.
  void put(std::uint64_t disk, std::uint64_t offset, std::uint64_t sequence) {
    for (std::uint64_t at = offset; at < offset + kWriteLength; at += kSectorSize)
      put_sector(disk, at, stamped_sector(sequence, disk, at));
  }
  void put_sector(std::uint64_t disk, std::uint64_t offset, const Sector& sector) {
    put_bytes(disk, offset, std::as_bytes(std::span(sector)));
  }
  void put_bytes(std::uint64_t disk, std::uint64_t offset, std::span<const std::byte> bytes) {
    File::open(disks_.at(disk), O_WRONLY).write_at(bytes, offset);
  }

  std::vector<std::string> instant(std::uint64_t done_before, std::uint64_t not_after) const {
    return check_instant(disks_, parse_operation_log(log_), done_before, not_after);
  }
  std::vector<std::string> instant() const { return instant(0, sequence_); }
  std::vector<std::string> nothing_lost() const {
    return check_nothing_lost(disks_, parse_operation_log(log_));
  }

 private:
  void log(const char* kind, std::uint64_t disk, std::uint64_t offset, std::uint64_t length,
           Ends ends) {
    ++sequence_;
    const std::string what = fmt::format("{} {} {} {} {}", sequence_, disk, kind, offset, length);
    log_ += "start " + what + "\n";
    if (ends == Ends::yes)
      log_ += "done " + what + " 100 1000\n";
  }

  TempFolder folder_;
  std::vector<std::string> disks_{folder_ / "0.raw", folder_ / "1.raw"};
  std::uint64_t sequence_ = 0;
  std::string log_;
};

TEST_F(CheckTest, BlankDisksAndAnEmptyLogAreGood) {
  EXPECT_THAT(instant(), IsEmpty());
  EXPECT_THAT(nothing_lost(), IsEmpty());
}

TEST_F(CheckTest, EverythingThereIsGood) {
  write(0, 0);
  write(1, kBlock);
  write(0, 0);
  clear("zero", 1, 0);
  write(1, 8 * kBlock);
  clear("discard", 0, 0);
  write(0, 15 * kBlock);
  EXPECT_THAT(instant(8, 8), IsEmpty());
  EXPECT_THAT(nothing_lost(), IsEmpty());
}

TEST_F(CheckTest, AMissingWriteIsFound) {
  write(0, 0);
  write(0, kBlock, Applied::no);
  EXPECT_THAT(nothing_lost(),
              ElementsAre("disk 0, [0x1000, 0x2000): holds zeros; operation 2 (write), "
                          "acknowledged before, is missing"));
  EXPECT_THAT(instant(3, 3), ElementsAre(HasSubstr("operation 2 (write), acknowledged before")));
  // Of an instant between the two.
  EXPECT_THAT(instant(2, 3), IsEmpty());
}

TEST_F(CheckTest, AnOldVersionIsFound) {
  write(0, 0);
  write(0, 0, Applied::no);
  EXPECT_THAT(nothing_lost(), ElementsAre(HasSubstr("holds operation 1; operation 2 (write)")));
}

TEST_F(CheckTest, ALostSectorOfABlockIsFound) {
  write(0, 0);
  put_bytes(0, 7 * kSectorSize, std::vector<std::byte>(kSectorSize));
  EXPECT_THAT(nothing_lost(), ElementsAre(HasSubstr("disk 0, [0xe00, 0x1000): holds zeros")));
}

TEST_F(CheckTest, AMissingZeroIsFound) {
  write(0, kBlock);
  clear("zero", 0, 0, Applied::no);
  EXPECT_THAT(nothing_lost(), ElementsAre(HasSubstr("holds operation 1; operation 2 (zero)")));
}

TEST_F(CheckTest, AWriteUnderAZeroIsNotMissed) {
  write(0, kBlock, Applied::no);
  clear("zero", 0, 0);
  EXPECT_THAT(nothing_lost(), IsEmpty());
}

TEST_F(CheckTest, ADiscardMayLeaveWhatWasThere) {
  write(0, kBlock);
  clear("discard", 0, 0, Applied::no);
  clear("discard", 0, 0, Applied::no);
  EXPECT_THAT(nothing_lost(), IsEmpty());
}

TEST_F(CheckTest, ADiscardDoesNotBringBackWhatWasOverwritten) {
  write(0, kBlock);
  write(0, kBlock, Applied::no);
  clear("discard", 0, 0, Applied::no);
  EXPECT_THAT(nothing_lost(), ElementsAre(HasSubstr("holds operation 1")));
}

TEST_F(CheckTest, WhatWasInFlightMayBeThereOrNot) {
  write(0, 0);
  write(0, 0, Applied::no, Ends::no);
  EXPECT_THAT(nothing_lost(), IsEmpty());
  EXPECT_THAT(instant(2, 2), IsEmpty());
  put(0, 0, 2);
  EXPECT_THAT(nothing_lost(), IsEmpty());
  put(0, 0, 1);
  put_sector(0, 0, stamped_sector(2, 0, 0));  // a torn write
  EXPECT_THAT(nothing_lost(), IsEmpty());
}

TEST_F(CheckTest, ALaterWriteThanAllowedIsFound) {
  write(0, 0);
  write(0, kBlock);
  write(0, 2 * kBlock);
  EXPECT_THAT(instant(2, 2),
              ElementsAre("disk 0, [0x2000, 0x3000): holds operation 3 (write), which had not "
                          "begun"));
  EXPECT_THAT(instant(2, 3), IsEmpty());
}

TEST_F(CheckTest, OneDiskBehindTheOtherIsFound) {
  write(0, 0);
  write(1, 0, Applied::no);
  write(0, kBlock);
  EXPECT_THAT(instant(1, 3), ElementsAre(HasSubstr("of another instant than the rest")));
}

TEST_F(CheckTest, OneDiskBehindTheOtherInAZeroIsFound) {
  write(1, 0);
  clear("zero", 1, 0, Applied::no);
  write(0, kBlock);
  EXPECT_THAT(instant(1, 3), ElementsAre(HasSubstr("of another instant than the rest")));
}

TEST_F(CheckTest, AMissingWriteOnTheSameDiskBeforeOneThatIsThereIsFound) {
  write(0, 0, Applied::no);
  write(0, kBlock);
  EXPECT_THAT(instant(1, 2), ElementsAre(HasSubstr("of another instant than the rest")));
}

TEST_F(CheckTest, ABackupInTheMiddleOfTheLogIsGood) {
  write(0, 0);
  write(1, 0);
  clear("zero", 0, 0);
  write(0, 0, Applied::no);
  clear("zero", 1, 0, Applied::no);
  write(1, 8 * kBlock, Applied::no);
  EXPECT_THAT(instant(3, 6), IsEmpty());
  EXPECT_THAT(instant(4, 4), IsEmpty());
  EXPECT_THAT(nothing_lost(), ::testing::Not(IsEmpty()));
}

TEST_F(CheckTest, StrayDataIsFound) {
  write(0, 0);
  put_sector(1, kBlock, stamped_sector(1, 0, 0));
  EXPECT_THAT(nothing_lost(), ElementsAre(HasSubstr("holds operation 1 of another place")));
  put_sector(1, kBlock, stamped_sector(1, 1, kBlock));
  EXPECT_THAT(nothing_lost(), ElementsAre(HasSubstr("operation 1, which did not write there")));
  put_bytes(1, kBlock, std::vector<std::byte>(kSectorSize, std::byte{7}));
  EXPECT_THAT(nothing_lost(), ElementsAre(HasSubstr("something that the writer did not write")));
  Sector torn = stamped_sector(1, 1, kBlock);
  torn.back() = {};
  put_sector(1, kBlock, torn);
  EXPECT_THAT(nothing_lost(), ElementsAre(HasSubstr("something that the writer did not write")));
}

TEST_F(CheckTest, OnlyACrashExcusesWhatIsNotInTheLog) {
  write(0, 0);
  put(0, 0, 2);
  EXPECT_THAT(nothing_lost(), IsEmpty());
  EXPECT_THAT(instant(), ElementsAre(HasSubstr("operation 2, which did not write there")));
}

TEST_F(CheckTest, ManyProblemsAreCutShort) {
  for (std::uint64_t i = 0; i < 30; ++i)
    write(0, 2 * i * kBlock, Applied::no);
  const auto problems = nothing_lost();
  ASSERT_EQ(problems.size(), 21U);
  EXPECT_EQ(problems.back(), "and 10 more");
}

TEST_F(CheckTest, ArgumentsThatMakeNoSenseAreRefused) {
  write(0, 0);
  write(0, 0);
  EXPECT_THROW(instant(3, 1), Error);
  EXPECT_THROW(check_nothing_lost({}, parse_operation_log("start 1 0 write 0 4096\n")), Error);
}

}  // namespace
}  // namespace nbdelta::testing
