// The base was written to after the overlays over it: by a commit of ours, or by somebody else.

#include <gtest/gtest.h>

#include <string>

#include "tests/client/backup/offline_fixture.hpp"

namespace nbdelta::client::backup {
namespace {

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
