// Putting images right whose QEMU has ended. qemu-img made a flat copy of what the guest saw last:
// that is what the base must read as afterwards.

#include "client/backup/offline.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <memory>
#include <string>

#include "base/arithmetic.hpp"
#include "client/backup/overlay_files.hpp"
#include "client/backup/real/environment.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::client::backup {
namespace {

using nbdelta::testing::difference;
using nbdelta::testing::NbdServer;
using nbdelta::testing::qemu_img;
using nbdelta::testing::qemu_io;
using nbdelta::testing::read_file;
using nbdelta::testing::TempFolder;
using ::testing::HasSubstr;

constexpr std::uint64_t kSize = 4 * kMiB;
constexpr std::int64_t kSince = 1'700'000'000;

using List = std::vector<std::string>;

bool mentions(const List& lines, const std::string& what) {
  for (const std::string& line : lines)
    if (line.find(what) != std::string::npos)
      return true;
  return false;
}

class Offline : public ::testing::TestWithParam<const char*> {
 protected:
  Offline() : base_(files_.canonical(folder_ / "disk.img")) {
    testing::create_image(base_, format(), kSize);
    qemu_io(base_, format(), {"write -P 1 0 1M", "write -P 2 3M 512k"});
  }

  static std::string format() { return GetParam(); }
  std::string overlay(std::uint32_t number) const {
    return folder_of(base_) + "/" + overlay_file_name({"0123abcd", number}, "vda");
  }

  /// Overlay 1 over the base, with writes.
  void one_overlay() {
    create_overlay(files_, overlay(1), base_, kSize, base_,
                   image::parse_format(format(), "the test"));
    qemu_io(overlay(1), "qcow2", {"write -P 11 64k 64k", "write -z 3M 64k", "write -P 12 2M 512"});
  }
  /// And overlay 2 over that.
  void two_overlays() {
    one_overlay();
    create_overlay(files_, overlay(2), overlay(1), kSize, overlay(1), image::Format::qcow2);
    qemu_io(overlay(2), "qcow2", {"write -P 21 96k 64k", "write -P 22 1M 4k"});
  }
  /// What the guest sees on `path`, kept for later.
  void keep_truth(const std::string& path, const std::string& of_format) {
    qemu_img({"convert", "-f", of_format, "-O", "raw", path, truth_});
  }
  void expect_truth_in_base() {
    EXPECT_EQ(difference(base_, format(), truth_, "raw"), "");
    if (format() == "qcow2") {
      EXPECT_EQ(testing::check_complaints(base_), "");
    }
  }

  Settled recover() { return recover_offline(*environment_, base_, journal_); }

  JournalDisk& journal_entry(std::uint32_t number) {
    if (!journal_) {
      journal_.emplace();
      journal_->since = kSince;
    }
    JournalDisk disk;
    disk.name = "vda";
    disk.base_local = base_;
    disk.overlay_local = overlay(number);
    journal_->disks.push_back(disk);
    return journal_->disks.back();
  }

  static void set_modified(const std::string& path, std::int64_t seconds) {
    const struct timespec times[] = {{seconds, 0}, {seconds, 999'999'999}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0) << path;
  }

  TempFolder folder_;
  asio::io_context loop_;
  std::unique_ptr<Environment> environment_ = real_environment(loop_, {}, {});
  Files& files_ = environment_->files();
  std::string base_;
  std::string truth_ = folder_ / "truth.raw";
  std::optional<Journal> journal_;
};

INSTANTIATE_TEST_SUITE_P(Formats, Offline, ::testing::Values("qcow2", "raw"),
                         [](const auto& row) { return std::string(row.param); });

TEST_P(Offline, NothingIsToBeDone) {
  const auto before = read_file(base_);
  const Settled settled = recover();
  EXPECT_EQ(settled.done, List{});
  EXPECT_EQ(settled.problems, List{});
  EXPECT_FALSE(settled.overlay_kept);
  EXPECT_EQ(read_file(base_), before);
}

TEST_P(Offline, AnImageThatIsNotThereIsAnError) {
  EXPECT_THROW(recover_offline(*environment_, folder_ / "none.img", journal_), Error);
}

TEST_P(Offline, OneOverlayIsCommitted) {
  one_overlay();
  keep_truth(overlay(1), "qcow2");
  const Settled settled = recover();
  EXPECT_EQ(settled.problems, List{});
  EXPECT_TRUE(mentions(settled.done, "committed " + overlay(1)));
  EXPECT_TRUE(mentions(settled.done, "removed " + overlay(1)));
  EXPECT_FALSE(files_.exists(overlay(1)));
  expect_truth_in_base();
}

TEST_P(Offline, AStackOfTwoIsCommittedFromTheTop) {
  two_overlays();
  keep_truth(overlay(2), "qcow2");
  const Settled settled = recover();
  EXPECT_EQ(settled.problems, List{});
  ASSERT_EQ(settled.done.size(), 4U);
  EXPECT_EQ(settled.done[0], "committed " + overlay(2) + " into " + overlay(1));
  EXPECT_EQ(settled.done[2], "committed " + overlay(1) + " into " + base_);
  EXPECT_FALSE(files_.exists(overlay(1)));
  EXPECT_FALSE(files_.exists(overlay(2)));
  expect_truth_in_base();
}

/// A commit does not take them along.
TEST_P(Offline, SnapshotsInAnOverlayStay) {
  two_overlays();
  write_current(files_, overlay(2), overlay(2), "disk.img");
  qemu_img({"snapshot", "-c", "lunch", overlay(1)});
  const Settled settled = recover();
  EXPECT_EQ(settled.done, List{});
  ASSERT_EQ(settled.problems.size(), 1U);
  EXPECT_TRUE(mentions(settled.problems, overlay(1) + ": holds snapshots of the guest"));
  EXPECT_TRUE(mentions(settled.problems, "'qemu-img snapshot -d NAME " + overlay(1) + "'"));
  EXPECT_TRUE(files_.exists(overlay(2)));
  qemu_img({"snapshot", "-d", "lunch", overlay(1)});
  keep_truth(overlay(2), "qcow2");
  EXPECT_EQ(recover().problems, List{});
  expect_truth_in_base();
}

TEST_P(Offline, AnOverlayThatHoldsNothingButASnapshotIsNotEmpty) {
  create_overlay(files_, overlay(1), base_, kSize, base_,
                 image::parse_format(format(), "the test"));
  EXPECT_TRUE(files_.overlay_is_empty(overlay(1)));
  qemu_img({"snapshot", "-c", "lunch", overlay(1)});
  EXPECT_FALSE(files_.overlay_is_empty(overlay(1)));
}

/// The guest starts on what has it all, whatever failed.
TEST_P(Offline, WhatTheGuestStartsOnIsRightAfterACommitThatFailed) {
  two_overlays();
  keep_truth(overlay(2), "qcow2");
  write_current(files_, overlay(2), overlay(2), "disk.img");
  {
    const NbdServer reader = NbdServer::delta({"image=" + base_, "format=" + format()});
    EXPECT_THROW(recover(), Error);
  }
  EXPECT_FALSE(files_.exists(overlay(2)));
  EXPECT_EQ(files_.read_text(folder_of(base_) + "/nbdelta-current-disk.img"), overlay(1) + "\n");
  EXPECT_EQ(difference(overlay(1), "qcow2", truth_, "raw"), "");
  EXPECT_EQ(recover().problems, List{});
  EXPECT_FALSE(files_.exists(folder_of(base_) + "/nbdelta-current-disk.img"));
  expect_truth_in_base();
}

TEST_P(Offline, CanBeRepeated) {
  two_overlays();
  keep_truth(overlay(2), "qcow2");
  recover();
  const auto after = read_file(base_);
  const Settled again = recover();
  EXPECT_EQ(again.done, List{});
  EXPECT_EQ(again.problems, List{});
  EXPECT_EQ(read_file(base_), after);
  expect_truth_in_base();
}

/// The lower one was committed by a QEMU that died before the file was removed.
TEST_P(Offline, WhatWasCommittedBelowIsNotCommittedAgain) {
  two_overlays();
  environment_->commit_offline(overlay(1));
  qemu_img({"rebase", "-u", "-f", "qcow2", "-b", base_, "-F", format(), overlay(2)});
  qemu_io(overlay(2), "qcow2", {"write -P 31 64k 4k"});
  keep_truth(overlay(2), "qcow2");
  const Settled settled = recover();
  EXPECT_EQ(settled.problems, List{});
  ASSERT_EQ(settled.done.size(), 3U);
  EXPECT_EQ(settled.done[0], "removed " + overlay(1) + ": it had been committed");
  EXPECT_EQ(settled.done[1], "committed " + overlay(2) + " into " + base_);
  EXPECT_EQ(recover().done, List{});
  expect_truth_in_base();
}

/// Nobody came to write the second one's header after the first had been committed; the third's was
/// written, and QEMU died.
TEST_P(Offline, WhatWasCommittedBelowGoesWithWhatLiesOverIt) {
  two_overlays();
  create_overlay(files_, overlay(3), overlay(2), kSize, overlay(2), image::Format::qcow2);
  qemu_io(overlay(3), "qcow2", {"write -P 31 64k 4k"});
  keep_truth(overlay(3), "qcow2");
  environment_->commit_offline(overlay(1));
  qemu_img({"rebase", "-u", "-f", "qcow2", "-b", base_, "-F", format(), overlay(2)});
  environment_->commit_offline(overlay(2));
  qemu_img({"rebase", "-u", "-f", "qcow2", "-b", overlay(1), "-F", "qcow2", overlay(2)});
  qemu_img({"rebase", "-u", "-f", "qcow2", "-b", base_, "-F", format(), overlay(3)});
  qemu_io(overlay(3), "qcow2", {"write -P 31 64k 4k"});
  const Settled settled = recover();
  EXPECT_EQ(settled.problems, List{});
  EXPECT_EQ(settled.done,
            (List{"removed " + overlay(2) + ": it had been committed",
                  "removed " + overlay(1) + ": it had been committed",
                  "committed " + overlay(3) + " into " + base_, "removed " + overlay(3)}));
  expect_truth_in_base();
}

/// Nothing of it is in the base.
TEST_P(Offline, WhatCountsOverOneThatWasCommittedIsLeft) {
  two_overlays();
  environment_->commit_offline(overlay(1));
  mark_committed(files_, overlay(1));
  const auto before = read_file(overlay(2));
  try {
    recover();
    ADD_FAILURE() << "it is not refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), ESTALE);
    EXPECT_THAT(error.what(), HasSubstr(overlay(2) + " lies over " + overlay(1)));
  }
  EXPECT_TRUE(files_.exists(overlay(1)));
  EXPECT_EQ(read_file(overlay(2)), before);
}

TEST_P(Offline, CanBeRepeatedAfterACommitThatWasNotFollowedByTheRemoval) {
  two_overlays();
  keep_truth(overlay(2), "qcow2");
  environment_->commit_offline(overlay(2));
  recover();
  expect_truth_in_base();
  EXPECT_FALSE(files_.exists(overlay(1)));
}

TEST_P(Offline, AnEmptyOverlayIsRemoved) {
  create_overlay(files_, overlay(1), base_, kSize, base_,
                 image::parse_format(format(), "the test"));
  keep_truth(base_, format());
  const Settled settled = recover();
  EXPECT_TRUE(mentions(settled.done, "removed " + overlay(1)));
  EXPECT_FALSE(files_.exists(overlay(1)));
  expect_truth_in_base();
}

TEST_P(Offline, AnOverlayElsewhereIsFoundByItsPointer) {
  files_.make_folder(folder_ / "fast");
  const std::string far = folder_ / "fast/nbdelta-0123abcd-0001-vda.qcow2";
  create_overlay(files_, far, base_, kSize, base_, image::parse_format(format(), "the test"));
  qemu_io(far, "qcow2", {"write -P 11 64k 64k"});
  keep_truth(far, "qcow2");
  recover();
  EXPECT_FALSE(files_.exists(far));
  EXPECT_FALSE(files_.exists(overlay(1) + ".at"));
  expect_truth_in_base();
}

/// As somebody makes who wants to be careful.
TEST_P(Offline, ACopyOfAnOverlayBesideItIsAnErrorThatChangesNothing) {
  one_overlay();
  const std::string copy = folder_of(base_) + "/nbdelta-0123abcd-0001-vda.copy.qcow2";
  testing::run_ok({"cp", overlay(1), copy});
  for (const std::int64_t copied_at : {kSince - 60, kSince}) {
    set_modified(overlay(1), kSince);
    set_modified(copy, copied_at);
    const auto base = read_file(base_);
    EXPECT_THROW(recover(), Error);
    EXPECT_EQ(read_file(base_), base);
    ASSERT_TRUE(files_.exists(overlay(1)));
    ASSERT_TRUE(files_.exists(copy));
  }
}

TEST_P(Offline, AForkIsAnErrorThatChangesNothing) {
  one_overlay();
  create_overlay(files_, overlay(3), base_, kSize, base_,
                 image::parse_format(format(), "the test"));
  set_modified(overlay(3), kSince);  // the first was in use after it
  const auto base = read_file(base_);
  EXPECT_THROW(recover(), Error);
  EXPECT_EQ(read_file(base_), base);
  EXPECT_TRUE(files_.exists(overlay(1)));
  EXPECT_TRUE(files_.exists(overlay(3)));
}

struct Snapshot {
  std::vector<std::byte> base;
  std::vector<std::byte> overlay;
};

/// Runs recover(), which must fail on a lock, and leave all as it is.
#define EXPECT_LOCKED_AND_UNCHANGED(top)                                                    \
  do {                                                                                      \
    const Snapshot before{read_file(base_), read_file(top)};                                \
    try {                                                                                   \
      recover();                                                                            \
      ADD_FAILURE() << "was done though somebody has it open";                              \
    } catch (const Error& error) {                                                          \
      EXPECT_NE(std::string(error.what()).find("lock"), std::string::npos) << error.what(); \
    }                                                                                       \
    ASSERT_TRUE(files_.exists(top));                                                        \
    EXPECT_EQ(read_file(base_), before.base);                                               \
    EXPECT_EQ(read_file(top), before.overlay);                                              \
  } while (false)

TEST_P(Offline, AnOverlayThatIsInUseIsAnErrorThatChangesNothing) {
  one_overlay();
  keep_truth(overlay(1), "qcow2");
  {
    const NbdServer guest = NbdServer::qemu_nbd({"-f", "qcow2", overlay(1)});
    EXPECT_LOCKED_AND_UNCHANGED(overlay(1));
  }
  EXPECT_EQ(recover().problems, List{});
  expect_truth_in_base();
}

TEST_P(Offline, AStackWhoseTopIsInUseIsAnErrorThatChangesNothing) {
  two_overlays();
  const auto lower = read_file(overlay(1));
  const NbdServer guest = NbdServer::qemu_nbd({"-f", "qcow2", overlay(2)});
  EXPECT_LOCKED_AND_UNCHANGED(overlay(2));
  EXPECT_EQ(read_file(overlay(1)), lower);
}

TEST_P(Offline, ABaseThatIsInUseGetsNoMark) {
  one_overlay();
  {
    const NbdServer guest = NbdServer::qemu_nbd({"-f", format(), base_});
    EXPECT_THROW(recover(), Error);
  }
  EXPECT_FALSE(committing_since(files_, overlay(1)));
  EXPECT_TRUE(files_.exists(overlay(1)));
}

TEST_P(Offline, ABaseThatIsBeingReadIsAnErrorThatChangesNothing) {
  one_overlay();
  const NbdServer reader = NbdServer::delta({"image=" + base_, "format=" + format()});
  EXPECT_LOCKED_AND_UNCHANGED(overlay(1));
}

/// It may look empty from outside while QEMU has the tables of its first clusters in memory.
TEST_P(Offline, AnEmptyOverlayThatIsInUseIsAnErrorThatChangesNothing) {
  create_overlay(files_, overlay(1), base_, kSize, base_,
                 image::parse_format(format(), "the test"));
  const NbdServer guest = NbdServer::qemu_nbd({"-f", "qcow2", overlay(1)});
  EXPECT_LOCKED_AND_UNCHANGED(overlay(1));
}

/// It may be older than the base: nothing of it is committed again.
TEST_P(Offline, AnOverlayThatIsMarkedAsCommittedIsRemoved) {
  one_overlay();
  mark_committed(files_, overlay(1));
  qemu_io(base_, format(), {"write -P 31 64k 64k"});
  keep_truth(base_, format());
  const Settled settled = recover();
  EXPECT_EQ(settled.problems, List{});
  EXPECT_TRUE(mentions(settled.done, overlay(1) + ": it had been committed"));
  EXPECT_FALSE(files_.exists(overlay(1)));
  EXPECT_FALSE(is_committed(files_, overlay(1)));
  expect_truth_in_base();
}

/// Its QEMU may hold the guest's writes back, and be told that they go to the overlay after all.
TEST_P(Offline, AMarkedOverlayThatIsInUseIsAnErrorThatChangesNothing) {
  one_overlay();
  mark_committed(files_, overlay(1));
  {
    const NbdServer guest = NbdServer::qemu_nbd({"-f", "qcow2", overlay(1)});
    EXPECT_LOCKED_AND_UNCHANGED(overlay(1));
  }
  EXPECT_TRUE(is_committed(files_, overlay(1)));
}

TEST_P(Offline, ALaterOverlayIsCommittedWhereAMarkedOneIsLeft) {
  one_overlay();
  environment_->commit_offline(overlay(1));
  mark_committed(files_, overlay(1));
  qemu_io(base_, format(), {"write -P 31 64k 64k"});
  create_overlay(files_, overlay(2), base_, kSize, base_,
                 image::parse_format(format(), "the test"));
  qemu_io(overlay(2), "qcow2", {"write -P 32 1M 64k"});
  keep_truth(overlay(2), "qcow2");
  EXPECT_EQ(recover().problems, List{});
  for (const std::uint32_t number : {1U, 2U}) {
    EXPECT_FALSE(files_.exists(overlay(number)));
    EXPECT_FALSE(is_committed(files_, overlay(number)));
  }
  expect_truth_in_base();
}

/// Only the overlay itself had been removed.
TEST_P(Offline, AMarkThatIsLeftAloneIsRemoved) {
  mark_committed(files_, overlay(1));
  keep_truth(base_, format());
  EXPECT_EQ(recover().problems, List{});
  EXPECT_FALSE(is_committed(files_, overlay(1)));
  expect_truth_in_base();
}

TEST_P(Offline, AMarkOfOneThatHasGoneIsNotTheNextOnes) {
  mark_committed(files_, overlay(1));
  one_overlay();
  keep_truth(overlay(1), "qcow2");
  EXPECT_EQ(recover().problems, List{});
  expect_truth_in_base();
}

/// A guest that was started without its overlays has written to the base.
class Newer : public Offline {
 protected:
  /// Says so, and changes nothing, however often.
  void expect_left(const std::string& top) {
    const auto base = read_file(base_);
    const auto overlay = read_file(top);
    for (int i = 0; i < 2; ++i) {
      const Settled settled = recover();
      EXPECT_EQ(settled.done, List{});
      ASSERT_EQ(settled.problems.size(), 1U);
      for (const std::string& what : {base_, top, std::string("qemu-img commit")})
        EXPECT_TRUE(mentions(settled.problems, what)) << settled.problems[0];
      ASSERT_TRUE(files_.exists(top));
      EXPECT_EQ(read_file(base_), base);
      EXPECT_EQ(read_file(top), overlay);
    }
  }
  void expect_committed(const std::string& top) {
    keep_truth(top, "qcow2");
    EXPECT_EQ(recover().problems, List{});
    EXPECT_FALSE(files_.exists(top));
    expect_truth_in_base();
  }
};

INSTANTIATE_TEST_SUITE_P(Formats, Newer, ::testing::Values("qcow2", "raw"),
                         [](const auto& row) { return std::string(row.param); });

TEST_P(Newer, ThanTheOverlayAndNoSessionIsKnown) {
  one_overlay();
  set_modified(overlay(1), kSince);
  set_modified(base_, kSince + 11);
  expect_left(overlay(1));
  journal_entry(7);  // another session's says nothing
  expect_left(overlay(1));
}

TEST_P(Newer, ThanAStackOfOverlays) {
  two_overlays();
  set_modified(overlay(1), kSince - 60);
  set_modified(overlay(2), kSince);
  set_modified(base_, kSince + 11);
  const auto lower = read_file(overlay(1));
  expect_left(overlay(2));
  EXPECT_EQ(read_file(overlay(1)), lower);
}

class NewerDataFile : public Newer {
 protected:
  NewerDataFile() {
    testing::qemu_img(
        {"create", "-q", "-f", "qcow2", "-o", "data_file=" + data_, base_, std::to_string(kSize)});
  }
  const std::string data_ = folder_ / "data";
};

INSTANTIATE_TEST_SUITE_P(Formats, NewerDataFile, ::testing::Values("qcow2"),
                         [](const auto& row) { return std::string(row.param); });

TEST_P(NewerDataFile, ThanTheOverlayAndNoSessionIsKnown) {
  one_overlay();
  for (const std::string& image : {base_, overlay(1)})
    set_modified(image, kSince);
  set_modified(data_, kSince + 11);
  expect_left(overlay(1));
  set_modified(data_, kSince + 10);
  expect_committed(overlay(1));
}

/// A session writes to the base when it commits, and not before.
TEST_P(Newer, ThanAStackWhoseSessionHadNotBegunToCommit) {
  two_overlays();
  const auto in_phase = [&](std::uint32_t number, std::string_view phase) {
    journal_.reset();
    journal_entry(number);
    journal_->phase = phase;
    set_modified(overlay(1), kSince - 60);
    set_modified(overlay(2), kSince);
    set_modified(base_, kSince + 3600);
  };
  for (const std::uint32_t number : {1U, 2U}) {  // whichever of the two is the session's
    for (const std::string_view phase : {phase::kPrepare, phase::kWindow, phase::kExport}) {
      SCOPED_TRACE(fmt::format("{} of {}", phase, number));
      in_phase(number, phase);
      expect_left(overlay(2));
      ASSERT_FALSE(HasFailure());
    }
  }
  in_phase(2, phase::kKept);
  expect_committed(overlay(2));
}

TEST_P(Newer, ThanSomeOfAStackIsWhatACommitBelowDoes) {
  two_overlays();
  set_modified(overlay(1), kSince - 60);
  set_modified(base_, kSince);
  set_modified(overlay(2), kSince + 5);
  expect_committed(overlay(2));
}

TEST_P(Newer, ByNoMoreThanTheMargin) {
  one_overlay();
  set_modified(overlay(1), kSince);
  set_modified(base_, kSince + 10);
  expect_committed(overlay(1));
}

TEST_P(Newer, ThanAnEmptyOverlayIsNoMatter) {
  create_overlay(files_, overlay(1), base_, kSize, base_,
                 image::parse_format(format(), "the test"));
  set_modified(overlay(1), kSince);
  set_modified(base_, kSince + 3600);
  expect_committed(overlay(1));
}

TEST_P(Newer, AndTheSessionThatWroteIsKnown) {
  one_overlay();
  journal_entry(1);
  journal_->phase = phase::kCommit;
  set_modified(overlay(1), kSince);
  set_modified(base_, kSince + 3600);
  expect_committed(overlay(1));
}

/// A commit of ours was interrupted, or had just ended, and no repository was named.
TEST_P(Newer, AndACommitOfTheOverlayHadBegun) {
  one_overlay();
  mark_committing(files_, overlay(1));
  set_modified(overlay(1), kSince);
  set_modified(base_, kSince + 3600);
  expect_committed(overlay(1));
  EXPECT_EQ(files_.list(folder_of(base_)), (List{"disk.img", "truth.raw"}));
}

/// Then a guest was started without the overlay.
TEST_P(Newer, AfterACommitOfTheOverlayWasInterrupted) {
  one_overlay();
  mark_committing(files_, overlay(1));
  set_modified(overlay(1), kSince - 3600);
  set_modified(overlay(1) + ".committing", kSince);
  set_modified(base_, kSince + 11);
  expect_left(overlay(1));
  set_modified(base_, kSince + 10);
  expect_committed(overlay(1));
}

/// Which had written to the overlay below.
TEST_P(Newer, ThoughACommitOfTheUpperOverlayHadBegun) {
  two_overlays();
  mark_committing(files_, overlay(2));
  set_modified(overlay(1), kSince);
  set_modified(overlay(2), kSince);
  set_modified(base_, kSince + 3600);
  expect_left(overlay(2));
}

/// It had not begun to commit: so it was not the session that wrote to the base.
TEST_P(Newer, ThoughTheSessionHadNotBegunToCommit) {
  one_overlay();
  journal_entry(1);
  for (const std::string_view phase : {phase::kPrepare, phase::kWindow, phase::kExport}) {
    journal_->phase = phase;
    set_modified(overlay(1), kSince - 60);
    set_modified(base_, kSince + 11);
    expect_left(overlay(1));
  }
  set_modified(base_, kSince + 10);
  expect_committed(overlay(1));
}

}  // namespace
}  // namespace nbdelta::client::backup
