#include "client/backup/overlay_files.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json/value.hpp>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>

#include "base/arithmetic.hpp"
#include "client/backup/names.hpp"
#include "client/backup/real/files.hpp"
#include "tests/client/session/small_file_system.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::client::backup {
namespace {

using nbdelta::testing::check_complaints;
using nbdelta::testing::create_image;
using nbdelta::testing::image_info;
using nbdelta::testing::qemu_io;
using nbdelta::testing::TempFolder;

constexpr std::uint64_t kDiskSize = 4 * kMiB;

std::string name_of(std::uint32_t number) {
  return overlay_file_name({"0123abcd", number}, "vda");
}

class OverlayFiles : public ::testing::Test {
 protected:
  OverlayFiles() {
    files_->make_folder(folder_ / "images");
    files_->make_folder(folder_ / "fast");
    base_ = files_->canonical(folder_ / "images/disk.qcow2");
    create_image(base_, "qcow2", kDiskSize);
  }

  /// Where an overlay is: beside the base, or in the other folder.
  std::string beside(std::uint32_t number) const {
    return folder_of(base_) + "/" + name_of(number);
  }
  std::string elsewhere(std::uint32_t number) const { return folder_ / "fast/" + name_of(number); }
  std::string pointer(std::uint32_t number) const { return beside(number) + ".at"; }

  void create(const std::string& overlay) {
    create_overlay(*files_, overlay, base_, kDiskSize, base_, image::Format::qcow2);
  }
  void create_over(const std::string& overlay, const std::string& below) {
    create_overlay(*files_, overlay, base_, kDiskSize, below, image::Format::qcow2);
  }
  std::vector<std::string> over_base() { return overlays_over(*files_, base_); }

  TempFolder folder_;
  std::unique_ptr<Files> files_ = real_files();
  std::string base_;
};

using List = std::vector<std::string>;

TEST_F(OverlayFiles, AnOverlayIsWhatQemuExpects) {
  create(beside(1));
  EXPECT_EQ(check_complaints(beside(1)), "");
  const auto info = image_info(beside(1), "qcow2");
  EXPECT_EQ(info.at("backing-filename").as_string(), base_);
  EXPECT_EQ(info.at("backing-filename-format").as_string(), "qcow2");
  EXPECT_EQ(info.at("virtual-size").to_number<std::uint64_t>(), kDiskSize);
  EXPECT_EQ(info.at("format-specific").at("data").at("compat").as_string(), "1.1");
  EXPECT_EQ(files_->list(folder_of(base_)),
            (List{"disk.qcow2", name_of(1), name_of(1) + ".uncommitted"}));
}

TEST_F(OverlayFiles, GoWithWhatAKilledProcessLeftOfTheFilesBesideThem) {
  create(elsewhere(1));
  for (const std::string& name : {elsewhere(1) + ".committed", pointer(1)})
    std::ofstream(name + ".partial").close();
  remove_overlay(*files_, elsewhere(1), base_);
  EXPECT_EQ(files_->list(folder_of(base_)), (List{"disk.qcow2"}));
  EXPECT_EQ(files_->list(folder_of(elsewhere(1))), List{});
}

/// Which they may have filled themselves.
TEST_F(OverlayFiles, AreMarkedWhereNoSpaceIsLeft) {
  const testing::SmallFileSystem small("1m");
  const std::string overlay = small.path() + "/" + name_of(1);
  create(overlay);
  for (int i = 0; i < 2; ++i) {
    std::ofstream filler(small.path() + "/filler" + std::to_string(i));
    filler << std::string(kDiskSize, 'x') << std::flush;
    ASSERT_TRUE(filler.fail());
    mark_committed(*files_, overlay);
    EXPECT_TRUE(is_committed(*files_, overlay));
    unmark_committed(*files_, overlay);
    EXPECT_FALSE(is_committed(*files_, overlay));
    mark_committing(*files_, overlay);
    EXPECT_TRUE(committing_since(*files_, overlay));
  }
  EXPECT_TRUE(remove_overlay(*files_, overlay, base_));
  EXPECT_EQ(files_->list(small.path()), (List{"filler0", "filler1"}));
}

TEST_F(OverlayFiles, OfEverySizeReadAsTheirBase) {
  for (const std::uint64_t size : {std::uint64_t{512}, kMiB - 512, kMiB + 512, 5 * kMiB + 65536}) {
    const std::string raw = folder_ / ("images/" + std::to_string(size) + ".raw");
    create_image(raw, "raw", size);
    qemu_io(raw, "raw", {"write -P 5 0 512"});
    const std::string overlay = raw + ".overlay";
    create_overlay(*files_, overlay, raw, size, raw, image::Format::raw);
    EXPECT_EQ(check_complaints(overlay), "");
    EXPECT_EQ(image_info(overlay, "qcow2").at("backing-filename-format").as_string(), "raw");
    EXPECT_EQ(testing::difference(overlay, "qcow2", raw, "raw"), "");
    EXPECT_EQ(image_info(overlay, "qcow2").at("virtual-size").to_number<std::uint64_t>(), size);
  }
}

TEST_F(OverlayFiles, AreEmptyUntilTheyAreWrittenTo) {
  const char* const kWrites[] = {"write -P 1 0 512", "write -z 1M 64k", "discard 2M 64k",
                                 "write -P 9 4193792 512"};
  qemu_io(base_, "qcow2", {"write -P 3 0 4M"});
  std::uint32_t number = 1;
  for (const char* write : kWrites) {
    create(beside(number));
    EXPECT_TRUE(files_->overlay_is_empty(beside(number)));
    qemu_io(beside(number), "qcow2", {"read 0 4M", "flush"});
    EXPECT_TRUE(files_->overlay_is_empty(beside(number)));
    qemu_io(beside(number), "qcow2", {write});
    EXPECT_FALSE(files_->overlay_is_empty(beside(number))) << write;
    EXPECT_EQ(check_complaints(beside(number)), "");
    ++number;
  }
}

TEST_F(OverlayFiles, WhatCannotBeReadDoesNotCountAsEmpty) {
  EXPECT_FALSE(files_->overlay_is_empty(beside(1)));
  files_->write_text(beside(1), "no qcow2 image");
  EXPECT_FALSE(files_->overlay_is_empty(beside(1)));
}

TEST_F(OverlayFiles, BelongToWhoeverOwnsTheBase) {
  ASSERT_EQ(::chmod(base_.c_str(), 0640), 0);
  create(beside(1));
  struct stat of_base {};
  struct stat of_overlay {};
  ASSERT_EQ(::stat(base_.c_str(), &of_base), 0);
  ASSERT_EQ(::stat(beside(1).c_str(), &of_overlay), 0);
  EXPECT_EQ(of_overlay.st_mode, of_base.st_mode);
  EXPECT_EQ(of_overlay.st_uid, of_base.st_uid);
  EXPECT_EQ(of_overlay.st_gid, of_base.st_gid);
}

TEST_F(OverlayFiles, BesideTheBaseHaveNoPointer) {
  create(beside(1));
  EXPECT_FALSE(files_->exists(pointer(1)));
}

TEST_F(OverlayFiles, ElsewhereArePointedToFromBesideTheBase) {
  create(elsewhere(1));
  EXPECT_EQ(files_->read_text(pointer(1)), elsewhere(1) + "\ndisk.qcow2\n");
  EXPECT_EQ(over_base(), List{elsewhere(1)});
  EXPECT_TRUE(remove_overlay(*files_, elsewhere(1), base_));
  EXPECT_FALSE(files_->exists(elsewhere(1)));
  EXPECT_FALSE(files_->exists(pointer(1)));
}

TEST_F(OverlayFiles, AFolderThatIsALinkToTheBasesIsBesideIt) {
  ASSERT_EQ(::symlink((folder_ / "images").c_str(), (folder_ / "link").c_str()), 0);
  create(folder_ / "link/" + name_of(1));
  EXPECT_FALSE(files_->exists(pointer(1)));
  EXPECT_EQ(over_base(), List{beside(1)});
}

TEST_F(OverlayFiles, AreNeverMadeOverAFile) {
  files_->write_text(beside(1), "precious");
  EXPECT_THROW(create(beside(1)), Error);
  EXPECT_EQ(files_->read_text(beside(1)), "precious");
  ASSERT_EQ(::symlink(base_.c_str(), beside(2).c_str()), 0);
  EXPECT_THROW(create(beside(2)), Error);
  EXPECT_EQ(check_complaints(base_), "");
}

TEST_F(OverlayFiles, ThatCannotBeMadeLeaveNothing) {
  const std::string nowhere = folder_ / "no/such/folder/" + name_of(1);
  EXPECT_THROW(create(nowhere), Error);
  EXPECT_FALSE(files_->exists(pointer(1)));
  EXPECT_EQ(files_->list(folder_of(base_)), List{"disk.qcow2"});
}

TEST_F(OverlayFiles, AreRemovedOnce) {
  create(beside(1));
  EXPECT_TRUE(remove_overlay(*files_, beside(1), base_));
  EXPECT_FALSE(remove_overlay(*files_, beside(1), base_));
  EXPECT_TRUE(files_->exists(base_));
}

TEST_F(OverlayFiles, AreRemovedWithoutTheBaseBeingKnown) {
  create(beside(1));
  EXPECT_TRUE(remove_overlay(*files_, beside(1), ""));
  EXPECT_FALSE(files_->exists(beside(1)));
}

TEST_F(OverlayFiles, NothingLiesOverAnImageAlone) {
  EXPECT_EQ(over_base(), List{});
  EXPECT_EQ(overlays_over(*files_, folder_ / "no-such-file"), List{});
}

TEST_F(OverlayFiles, AChainComesLowestFirst) {
  create(beside(3));  // the numbers do not say the order
  create_over(beside(1), beside(3));
  create_over(beside(2), beside(1));
  EXPECT_EQ(over_base(), (List{beside(3), beside(1), beside(2)}));
  EXPECT_EQ(overlays_over(*files_, beside(3)), (List{beside(1), beside(2)}));
  EXPECT_EQ(overlays_over(*files_, beside(2)), List{});
}

TEST_F(OverlayFiles, AChainGoesOnInTheOtherFolder) {
  create(elsewhere(1));
  create_over(elsewhere(2), elsewhere(1));
  EXPECT_EQ(over_base(), (List{elsewhere(1), elsewhere(2)}));
}

/// The pointers to them are all beside the base.
TEST_F(OverlayFiles, AChainIsFoundFromItsMiddleToo) {
  files_->make_folder(folder_ / "other");
  const std::string upper = folder_ / "other/" + name_of(2);
  create(elsewhere(1));
  create_overlay(*files_, upper, base_, kDiskSize, elsewhere(1), image::Format::qcow2);
  EXPECT_EQ(over_base(), (List{elsewhere(1), upper}));
  EXPECT_EQ(overlays_over(*files_, elsewhere(1)), List{upper});
  // Beside a block device they do not last.
  files_->remove(pointer(1));
  files_->remove(pointer(2));
  EXPECT_EQ(overlays_over(*files_, base_, folder_ / "other"), (List{elsewhere(1), upper}));
}

TEST_F(OverlayFiles, OfABlockDeviceAreFoundWhereTheyAreSaidToBe) {
  const std::string raw = folder_ / "images/device.raw";
  create_image(raw, "raw", kDiskSize);
  const std::string said = testing::run_ok({"losetup", "--find", "--show", raw});
  const std::string device = said.substr(0, said.find('\n'));
  create_overlay(*files_, elsewhere(1), raw, kDiskSize, device, image::Format::raw);
  create_overlay(*files_, elsewhere(2), raw, kDiskSize, elsewhere(1), image::Format::qcow2);
  const std::string link = folder_ / "images/link";
  EXPECT_EQ(::symlink(device.c_str(), link.c_str()), 0);
  EXPECT_EQ(overlays_over(*files_, device, folder_ / "fast"), (List{elsewhere(1), elsewhere(2)}));
  EXPECT_EQ(overlays_over(*files_, link, folder_ / "fast"), (List{elsewhere(1), elsewhere(2)}));
  testing::run_ok({"losetup", "--detach", device});
}

TEST_F(OverlayFiles, AreFoundByEveryNameOfTheImage) {
  create(beside(1));
  const std::string link = folder_of(base_) + "/link.qcow2";
  ASSERT_EQ(::link(base_.c_str(), link.c_str()), 0);
  EXPECT_EQ(overlays_over(*files_, link), List{beside(1)});
}

TEST_F(OverlayFiles, ThatCannotBeReadAreAnError) {
  const std::string other = folder_ / "images/other.qcow2";
  create_image(other, "qcow2", kDiskSize);
  create(beside(1));
  testing::write_number<std::uint64_t>(beside(1), 72, 2);  // incompatible features: corrupt
  EXPECT_THROW(over_base(), Error);
  EXPECT_THROW(is_half_made(*files_, beside(1)), Error);
  EXPECT_EQ(overlays_over(*files_, other), List{});
}

/// A crash has left it, and a guest must not be started on it.
TEST_F(OverlayFiles, OneThatWasCommittedIsNoneToStartOn) {
  create(beside(1));
  create(beside(2));  // it was over 1 until that was committed
  EXPECT_EQ(overlays_over(*files_, beside(2)), List{});
  try {
    overlays_over(*files_, beside(1));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), ESTALE) << error.what();
  }
  mark_committed(*files_, beside(2));
  EXPECT_THROW(overlays_over(*files_, beside(2)), Error);
}

/// 1 and 2 were committed, when 3 was over them; 3 is empty and goes. Alone, they would count
/// again.
TEST_F(OverlayFiles, ThatWereCommittedBeforeOneThatGoesCountNoMore) {
  create(beside(1));
  create_over(beside(2), beside(1));
  create(beside(3));
  create_over(beside(4), beside(3));
  const std::string another = folder_of(base_) + "/" + overlay_file_name({"89abcdef", 1}, "vda");
  create(another);
  const std::set<std::string> all{beside(1), beside(2), beside(3), beside(4), another};
  mark_committed_before(*files_, beside(4), all);
  for (const std::string& each : all)
    EXPECT_FALSE(is_committed(*files_, each)) << each;
  mark_committed_before(*files_, beside(3), all);
  for (const std::string& each : all)
    EXPECT_EQ(is_committed(*files_, each), each == beside(1) || each == beside(2)) << each;
}

TEST_F(OverlayFiles, OfTwoDisksWithImagesOfOneNameAreNotBothCurrent) {
  create(elsewhere(1));
  write_current(*files_, elsewhere(1), elsewhere(1), "disk.qcow2");
  const std::string other = folder_ / "fast/" + overlay_file_name({"0123abcd", 1}, "vdb");
  create_overlay(*files_, other, base_, kDiskSize, base_, image::Format::qcow2);
  EXPECT_THROW(write_current(*files_, other, other, "disk.qcow2"), Error);
  create(elsewhere(2));
  write_current(*files_, elsewhere(2), elsewhere(2), "disk.qcow2");
}

/// A storage that is not mounted.
TEST_F(OverlayFiles, OfAnotherImageThatAreNotThereAreNoMatter) {
  const std::string other = folder_ / "images/other.qcow2";
  create_image(other, "qcow2", kDiskSize);
  create(elsewhere(1));
  std::filesystem::remove(elsewhere(1));
  EXPECT_THROW(over_base(), Error);
  EXPECT_EQ(overlays_over(*files_, other), List{});
}

/// A host that failed may have kept a header as it was before a commit.
TEST_F(OverlayFiles, OverOneThatHasGoneAreAnError) {
  create(beside(1));
  create_over(beside(2), beside(1));
  files_->remove(beside(1));
  try {
    over_base();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), ENOENT);
    EXPECT_EQ(std::string(error.what())
                  .find(beside(2) + " lies over " + beside(1) + ", which is not there. "),
              0U)
        << error.what();
  }
  mark_committed(*files_, beside(2));
  EXPECT_EQ(over_base(), List{});
}

/// Many guests may have their images in one folder.
TEST_F(OverlayFiles, OverOneThatHasGoneAreNoMatterToOtherImages) {
  const std::string other = folder_ / "images/other.qcow2";
  create_image(other, "qcow2", kDiskSize);
  create(beside(1));
  create_overlay(*files_, beside(2), base_, kDiskSize, beside(1), image::Format::qcow2);
  files_->remove(beside(1));
  EXPECT_THROW(over_base(), Error);
  EXPECT_EQ(overlays_over(*files_, other), List{});
  files_->remove(beside(2) + ".uncommitted");  // whose it is cannot be told
  EXPECT_THROW(overlays_over(*files_, other), Error);
}

/// QEMU's, by names that are none here.
TEST_F(OverlayFiles, OfAnotherDiskByNamesOfAnotherMachineAreNoMatter) {
  const auto other = [&](std::uint32_t number) {
    return folder_of(base_) + "/" + overlay_file_name({"0123abcd", number}, "vdb");
  };
  create_overlay(*files_, other(1), base_, kDiskSize, "/mnt/qemu/vdb.qcow2", image::Format::qcow2);
  create_overlay(*files_, other(2), base_, kDiskSize,
                 "/mnt/qemu/" + std::string(base_name(other(1))), image::Format::qcow2);
  EXPECT_EQ(over_base(), List{});
}

TEST_F(OverlayFiles, AChainIsFoundThroughALinkToTheImage) {
  create(beside(1));
  const std::string link = folder_ / "fast/link.qcow2";
  ASSERT_EQ(::symlink(base_.c_str(), link.c_str()), 0);
  EXPECT_EQ(overlays_over(*files_, link), List{beside(1)});
}

TEST_F(OverlayFiles, BackingNamesMayBeRelative) {
  create_overlay(*files_, beside(1), base_, kDiskSize, "disk.qcow2", image::Format::qcow2);
  EXPECT_EQ(files_->backing_of(beside(1)), base_);
  EXPECT_EQ(over_base(), List{beside(1)});
}

/// The first was below the second, until it was committed into the base.
TEST_F(OverlayFiles, OfTwoThatLieOverTheSameTheLaterCounts) {
  create(beside(9));
  create(beside(10));
  create_over(beside(11), beside(10));
  EXPECT_EQ(over_base(), (List{beside(10), beside(11)}));
  EXPECT_EQ(overlays_directly_over(*files_, base_), (List{beside(9), beside(10)}));
}

TEST_F(OverlayFiles, AForkOfTwoChainsIsAnError) {
  const std::string other = folder_of(base_) + "/" + overlay_file_name({"89abcdef", 2}, "vda");
  create(beside(1));
  create(other);
  try {
    over_base();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), EEXIST);
    const std::string message = error.what();
    for (const std::string& path : {base_, beside(1), other})
      EXPECT_NE(message.find(path), std::string::npos) << message;
  }
}

/// A copy, say, whoever made it: which of the two the guest wrote to cannot be told.
TEST_F(OverlayFiles, TwoOfOneSessionAreAnErrorWhicheverIsNewer) {
  create(beside(1));
  const std::string copy = folder_of(base_) + "/nbdelta-0123abcd-0001-vda.copy.qcow2";
  create(copy);
  for (const time_t seconds : {-60, 0, 60}) {
    const struct timespec times[] = {{1'700'000'000, 0}, {1'700'000'000 + seconds, 0}};
    const struct timespec same[] = {times[0], times[0]};
    ASSERT_EQ(::utimensat(AT_FDCWD, beside(1).c_str(), same, 0), 0);
    ASSERT_EQ(::utimensat(AT_FDCWD, copy.c_str(), times, 0), 0);
    try {
      over_base();
      ADD_FAILURE() << seconds;
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EEXIST);
      const std::string message = error.what();
      for (const std::string& path : {base_, beside(1), copy})
        EXPECT_NE(message.find(path), std::string::npos) << message;
    }
  }
}

TEST_F(OverlayFiles, AForkHigherUpIsAnErrorToo) {
  create(beside(1));
  create_over(beside(2), beside(1));
  create_over(folder_of(base_) + "/" + overlay_file_name({"89abcdef", 2}, "vda"), beside(1));
  EXPECT_THROW(over_base(), Error);
}

TEST_F(OverlayFiles, OfOtherImagesAndOfOthersAreNotSeen) {
  const std::string other = folder_of(base_) + "/other.qcow2";
  create_image(other, "qcow2", kDiskSize);
  create_over(beside(1), other);
  testing::create_overlay(folder_of(base_) + "/snapshot1.qcow2", base_, "qcow2");
  files_->write_text(beside(2), "no qcow2 image");
  files_->write_text(beside(3), "");
  EXPECT_EQ(over_base(), List{});
  create(beside(4));
  EXPECT_EQ(over_base(), List{beside(4)});
}

/// Its storage may not be mounted yet.
TEST_F(OverlayFiles, APointerToNothingIsAnError) {
  for (const std::string& text : {elsewhere(1) + "\n", std::string(), std::string("\n\n")}) {
    files_->write_text(pointer(1), text);
    try {
      over_base();
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), ENOENT);
      EXPECT_NE(std::string(error.what()).find(pointer(1)), std::string::npos) << error.what();
    }
  }
}

TEST_F(OverlayFiles, TheCurrentOneIsSaidUntilItGoes) {
  const std::string current = folder_of(base_) + "/nbdelta-current-disk.raw";
  create(beside(1));
  write_current(*files_, beside(1), "/qemu/" + name_of(1), "disk.raw");
  EXPECT_EQ(files_->read_text(current), "/qemu/" + name_of(1) + "\n");
  create_over(beside(2), beside(1));
  write_current(*files_, beside(2), "/qemu/" + name_of(2), "disk.raw");
  EXPECT_EQ(over_base(), (List{beside(1), beside(2)}));
  remove_overlay(*files_, beside(1), base_);
  EXPECT_TRUE(files_->exists(current));
  remove_overlay(*files_, beside(2), base_);
  EXPECT_FALSE(files_->exists(current));
}

TEST_F(OverlayFiles, BackingIsToldOfQcow2ImagesOnly) {
  EXPECT_EQ(files_->backing_of(base_), std::nullopt);
  EXPECT_EQ(files_->backing_of(folder_ / "no-such-file"), std::nullopt);
  files_->write_text(folder_ / "text", "no qcow2 image");
  EXPECT_EQ(files_->backing_of(folder_ / "text"), std::nullopt);
  ASSERT_EQ(::symlink("images", (folder_ / "link").c_str()), 0);
  create_over(elsewhere(1), folder_ / "link/disk.qcow2");
  EXPECT_EQ(files_->backing_of(elsewhere(1)), base_);
}

TEST_F(OverlayFiles, TextsAreReplacedAsAWhole) {
  const std::string path = folder_ / "text";
  EXPECT_EQ(files_->read_text(path), std::nullopt);
  files_->write_text(path, "a longer text");
  files_->write_text(path, "short");
  EXPECT_EQ(files_->read_text(path), "short");
  files_->write_text(path, "");
  EXPECT_EQ(files_->read_text(path), "");
  // A link is replaced; what it leads to stays.
  files_->write_text(folder_ / "other", "other");
  ASSERT_EQ(::symlink("other", (folder_ / "link").c_str()), 0);
  files_->write_text(folder_ / "link", "mine");
  EXPECT_EQ(files_->read_text(folder_ / "other"), "other");
  EXPECT_EQ(files_->read_text(folder_ / "link"), "mine");
  EXPECT_THROW(files_->read_text(folder_.path()), Error);
  EXPECT_THROW(files_->write_text(folder_ / "no/such/folder", "x"), Error);
}

TEST_F(OverlayFiles, FilesThatAreNotThereAreNoErrorWhereThatIsSaid) {
  EXPECT_NO_THROW(files_->remove(folder_ / "none"));
  EXPECT_NO_THROW(files_->remove_folder(folder_ / "none"));
  EXPECT_EQ(files_->list(folder_ / "none"), List{});
  EXPECT_FALSE(files_->exists(folder_ / "none"));
  EXPECT_EQ(files_->canonical(folder_ / "images/../none"), folder_ / "none");
  EXPECT_THROW(files_->check_readable(folder_ / "none"), Error);
  EXPECT_THROW(files_->modified(folder_ / "none"), Error);
  EXPECT_THROW(files_->allocated(folder_ / "none"), Error);
  EXPECT_THROW(files_->free_space(folder_ / "none"), Error);
  EXPECT_GT(files_->free_space(folder_.path()), 0U);
  ASSERT_EQ(::symlink("nowhere", (folder_ / "dangling").c_str()), 0);
  EXPECT_TRUE(files_->exists(folder_ / "dangling"));
}

/// Whoever takes a file for missing goes on without what is in it.
TEST_F(OverlayFiles, FilesThatCannotBeLookedAtAreAnError) {
  ASSERT_EQ(::symlink("loop", (folder_ / "loop").c_str()), 0);
  const struct {
    std::string path;
    int error_number;
  } rows[] = {{folder_ / std::string(256, 'x'), ENAMETOOLONG}, {folder_ / "loop/file", ELOOP}};
  for (const auto& row : rows) {
    try {
      files_->exists(row.path);
      ADD_FAILURE() << row.path;
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), row.error_number);
      EXPECT_NE(std::string(error.what()).find(row.path), std::string::npos) << error.what();
    }
  }
  EXPECT_FALSE(files_->exists(base_ + "/below-a-file"));
  EXPECT_TRUE(files_->exists(folder_ / "loop"));
}

TEST_F(OverlayFiles, AllocatedIsWhatTheStorageHolds) {
  const std::string raw = folder_ / "sparse.raw";
  create_image(raw, "raw", 64 * kMiB);
  EXPECT_LT(files_->allocated(raw), kMiB);
  qemu_io(raw, "raw", {"write -P 1 0 2M", "flush"});
  EXPECT_GE(files_->allocated(raw), 2 * kMiB);
}

}  // namespace
}  // namespace nbdelta::client::backup
