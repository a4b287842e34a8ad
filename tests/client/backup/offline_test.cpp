// Putting images right whose QEMU has ended. qemu-img made a flat copy of what the guest saw last:
// that is what the base must read as afterwards.

#include "client/backup/offline.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/client/backup/offline_fixture.hpp"
#include "tests/support/nbd_server.hpp"

namespace nbdelta::client::backup {
namespace {

using nbdelta::testing::NbdServer;
using ::testing::HasSubstr;

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

}  // namespace
}  // namespace nbdelta::client::backup
