#include "client/repository/repository.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>

#include "client/backup/real/files.hpp"
#include "client/json_text.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::client::repository {
namespace {

using nbdelta::testing::TempFolder;

class RepositoryTest : public ::testing::Test {
 protected:
  void add(const std::string& point, std::uint32_t number) {
    files_->make_folder(points_.point_folder(point));
    Manifest manifest;
    manifest.number = number;
    manifest.chain = "0123abcd";
    manifest.vm = point;
    points_.publish(point, manifest);
  }

  TempFolder folder_;
  std::unique_ptr<backup::Files> files_ = backup::real_files();
  Repository points_{*files_, folder_ / "repo/vm"};
};

TEST_F(RepositoryTest, IsEmptyWhereThereIsNone) {
  EXPECT_FALSE(points_.latest());
  EXPECT_EQ(points_.highest_number(), 0U);
  EXPECT_NO_THROW(points_.remove_unfinished());
  EXPECT_FALSE(files_->exists(folder_ / "repo"));
}

TEST_F(RepositoryTest, FolderNamesHaveFourDigits) {
  EXPECT_EQ(Repository::folder_name(1, kFull), "0001-full");
  EXPECT_EQ(Repository::folder_name(42, kIncremental), "0042-incremental");
  EXPECT_EQ(Repository::folder_name(12345, kFull), "12345-full");
  EXPECT_EQ(points_.point_folder("0001-full"), folder_ / "repo/vm/0001-full");
}

TEST_F(RepositoryTest, TheLatestIsTheOneWithTheHighestNumber) {
  add("0001-full", 1);
  add("0002-incremental", 2);
  EXPECT_EQ(points_.latest()->vm, "0002-incremental");
  add("0010-full", 10);
  add("0009-incremental", 9);  // made later, as far as files tell
  EXPECT_EQ(points_.latest()->vm, "0010-full");
  add("9999-incremental", 9999);
  add("10000-incremental", 10'000);
  EXPECT_EQ(points_.latest()->vm, "10000-incremental");
  EXPECT_EQ(points_.latest()->number, 10'000U);
  EXPECT_EQ(points_.highest_number(), 10'000U);
}

TEST_F(RepositoryTest, OtherNamesAreNoRestorePoints) {
  add("0001-full", 1);
  for (const char* name :
       {"2-full", "0003-Full", "0004", "0005-", "x0006-full", "0007-full.old", "-008-full",
        "0009_full", "99999999999-full", " 0010-full", "0011-incremental2", "lost+found"})
    add(name, 99);
  EXPECT_EQ(points_.latest()->vm, "0001-full");
  EXPECT_EQ(points_.highest_number(), 1U);
}

TEST_F(RepositoryTest, AFolderWithoutAManifestIsNoRestorePointButHasItsNumber) {
  add("0001-full", 1);
  files_->make_folder(points_.point_folder("0002-incremental"));
  EXPECT_EQ(points_.latest()->number, 1U);
  EXPECT_EQ(points_.highest_number(), 2U);
  EXPECT_TRUE(points_.has_manifest("0001-full"));
  EXPECT_FALSE(points_.has_manifest("0002-incremental"));
}

TEST_F(RepositoryTest, UnfinishedFoldersAreRemovedAndNothingElse) {
  add("0001-full", 1);
  const std::string unfinished = points_.point_folder("0002-incremental");
  files_->make_folder(unfinished + "/sub");
  files_->write_text(unfinished + "/vda.qcow2", "half");
  files_->write_text(unfinished + "/manifest.json.partial", "half");
  files_->make_folder(points_.point_folder("notes"));
  files_->write_text(points_.folder() + "/0003-full.txt", "not ours");
  files_->write_text(points_.folder() + "/nbdelta-session.json", "{}");
  points_.remove_unfinished();
  EXPECT_FALSE(files_->exists(unfinished));
  EXPECT_TRUE(points_.has_manifest("0001-full"));
  EXPECT_TRUE(files_->exists(points_.point_folder("notes")));
  EXPECT_TRUE(files_->exists(points_.folder() + "/0003-full.txt"));
  EXPECT_TRUE(files_->exists(points_.folder() + "/nbdelta-session.json"));
  points_.remove_unfinished();
}

/// Storage that fails for a moment: what is there must not be taken for unfinished.
TEST_F(RepositoryTest, AManifestThatCannotBeLookedAtDoesNotLoseItsPoint) {
  add("0001-full", 1);
  add("0002-incremental", 2);
  const std::string point = points_.point_folder("0002-incremental");
  const std::string storage = folder_ / "storage";
  const std::string link = folder_ / "link";
  ASSERT_EQ(::rename(point.c_str(), storage.c_str()), 0);
  ASSERT_EQ(::symlink(link.c_str(), point.c_str()), 0);
  ASSERT_EQ(::symlink(link.c_str(), link.c_str()), 0);  // ELOOP
  EXPECT_THROW(points_.latest(), Error);
  EXPECT_THROW(points_.remove_unfinished(), Error);
  ASSERT_EQ(::unlink(link.c_str()), 0);
  ASSERT_EQ(::symlink(storage.c_str(), link.c_str()), 0);
  const auto latest = points_.latest();
  ASSERT_TRUE(latest);
  EXPECT_EQ(latest->number, 2U);
}

TEST_F(RepositoryTest, ADamagedLatestManifestIsAnErrorNotAnOlderPoint) {
  add("0001-full", 1);
  add("0002-incremental", 2);
  const std::string path = points_.point_folder("0002-incremental") + "/manifest.json";
  for (const char* text : {"", "{", "[]", "{}"}) {
    files_->write_text(path, text);
    try {
      points_.latest();
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EPROTO);
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    }
  }
}

TEST_F(RepositoryTest, AnUnknownManifestVersionIsAnError) {
  add("0001-full", 1);
  Manifest manifest;
  manifest.manifest_version = 2;
  points_.publish("0001-full", manifest);
  try {
    points_.latest();
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("version 2"), std::string::npos) << error.what();
  }
}

TEST_F(RepositoryTest, TheLockTakesOneAtATime) {
  auto lock = points_.lock();
  EXPECT_TRUE(files_->exists(points_.folder()));  // made
  Repository other(*files_, points_.folder());
  try {
    other.lock();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), EAGAIN);
    const std::string message = error.what();
    EXPECT_NE(message.find(points_.folder()), std::string::npos) << message;
    EXPECT_NE(message.find("process " + std::to_string(::getpid())), std::string::npos) << message;
  }
  lock.reset();
  lock = other.lock();
  EXPECT_THROW(points_.lock(), Error);
}

TEST_F(RepositoryTest, ALockThatAnEndedProcessHasLeftIsTaken) {
  files_->make_folder(points_.folder());
  files_->write_text(points_.folder() + "/nbdelta-lock", "123456789");
  const auto lock = points_.lock();
  EXPECT_EQ(files_->read_text(points_.folder() + "/nbdelta-lock"), std::to_string(::getpid()));
}

TEST_F(RepositoryTest, TwoGuestsHaveTwoLocks) {
  const auto lock = points_.lock();
  Repository other(*files_, folder_ / "repo/vm2");
  EXPECT_NO_THROW(other.lock());
}

/// Whoever reads while a manifest is replaced sees the old one or the new one.
TEST_F(RepositoryTest, PublishingIsAtomic) {
  add("0001-full", 1);
  std::atomic<bool> stop = false;
  std::size_t reads = 0;
  std::string failure;
  std::thread reader([&] {
    const auto files = backup::real_files();
    const Repository points(*files, points_.folder());
    try {
      do {
        if (!points.latest())
          failure = "the manifest was not there";
        ++reads;
      } while (!stop && failure.empty());
    } catch (const Error& error) {
      failure = error.what();
    }
  });
  Manifest manifest;
  for (std::uint32_t i = 0; i < 100; ++i) {
    manifest.vm = std::string(i * 300, 'x');
    points_.publish("0001-full", manifest);
  }
  stop = true;
  reader.join();
  EXPECT_EQ(failure, "");
  EXPECT_GT(reads, 0U);
  EXPECT_EQ(files_->list(points_.point_folder("0001-full")),
            std::vector<std::string>{"manifest.json"});
}

TEST_F(RepositoryTest, APartialManifestOfAnEarlierAttemptIsNoObstacle) {
  files_->make_folder(points_.point_folder("0001-full"));
  files_->write_text(points_.point_folder("0001-full") + "/manifest.json.partial",
                     std::string(100'000, 'x'));
  add("0001-full", 1);
  EXPECT_EQ(points_.latest()->number, 1U);
}

TEST_F(RepositoryTest, AManifestThatCannotBeWrittenLeavesTheOldOne) {
  add("0001-full", 1);
  // A folder where the new one would be written first.
  files_->make_folder(points_.point_folder("0001-full") + "/manifest.json.partial");
  Manifest manifest;
  manifest.number = 7;
  EXPECT_THROW(points_.publish("0001-full", manifest), Error);
  EXPECT_EQ(points_.latest()->number, 1U);
}

}  // namespace
}  // namespace nbdelta::client::repository
