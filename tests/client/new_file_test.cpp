// How a new file comes to be: NAME.partial until it is complete, and then in the place of an old
// one.

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>

#include "base/arithmetic.hpp"
#include "tests/client/client_run.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;

constexpr int kRefused = 3;

TEST(NewFile, ForceReplacesOnceComplete) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  run_ok({"sh", "-c", "echo old > " + folder / "disk.raw"});
  pulled({from.uri(), folder / "disk.raw", "--force"});
  EXPECT_EQ(difference(folder / "disk.raw", "raw", from.uri(), "raw"), "");
  EXPECT_FALSE(fs::exists(folder / "disk.raw.partial"));
}

/// As if it had been written to.
TEST(NewFile, ForceKeepsModeAndOwner) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  const bool root = ::geteuid() == 0;
  const uid_t owner = root ? 1234 : ::geteuid();
  const gid_t group = root ? 1235 : ::getegid();
  for (const mode_t mode : {0600U, 0640U, 0664U})
    for (const char* name : {"disk.raw", "disk.qcow2"}) {
      const std::string disk = folder / name;
      run_ok({"sh", "-c", "echo old > " + disk});
      EXPECT_EQ(::chmod(disk.c_str(), mode), 0);
      EXPECT_EQ(::chown(disk.c_str(), owner, group), 0);
      pulled({from.uri(), disk, "--force"});
      struct stat status {};
      EXPECT_EQ(::stat(disk.c_str(), &status), 0);
      EXPECT_EQ(status.st_mode & 07777, mode) << disk;
      EXPECT_EQ(status.st_uid, owner) << disk;
      EXPECT_EQ(status.st_gid, group) << disk;
      EXPECT_GE(fs::file_size(disk), kMiB);
    }
}

/// Also where an interrupted pull has left one that everybody can read.
TEST(NewFile, PartialFileIsAsHardToReadAsTheOldOneFromItsFirstByteOn) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"20M"});
  const TempFolder folder;
  const std::string disk = folder / "disk.raw";
  const std::string partial = disk + ".partial";
  for (const bool left_over : {false, true}) {
    run_ok({"sh", "-c", "echo old > " + disk + " && chmod 600 " + disk});
    if (left_over)
      run_ok({"sh", "-c", "umask 0; : > " + partial});
    Background client(nbdelta_command({"pull", from.uri(), disk, "--force", "--rate", "40M"}));
    int seen = 0;
    while (client.running()) {
      struct stat status {};
      if (::stat(partial.c_str(), &status) != 0 || status.st_blocks == 0)
        continue;
      ++seen;
      ASSERT_EQ(status.st_mode & 0777, 0600U) << left_over;
    }
    EXPECT_GT(seen, 0);
  }
}

/// A file that another user may replace, but not give away.
TEST(NewFile, ForceWithoutTheRightToTheOwnerGivesNobodyMore) {
  if (::geteuid() != 0)
    GTEST_SKIP() << "only root can be several users";
  const TempFolder folder;
  const std::string disk = folder / "disk.raw";
  EXPECT_EQ(::chmod(folder.path().c_str(), 0777), 0);
  run_ok({"cp", nbdelta_program(), folder / "nbdelta"});
  run_ok({"sh", "-c", "umask 022; truncate -s 1M " + folder / "source.raw"});
  struct Row {
    gid_t group;
    mode_t mode;
    mode_t expected;
  };
  for (const Row& row : {Row{0, 06676, 0666}, Row{1000, 06676, 0676}}) {
    run_ok({"sh", "-c", "rm -f " + disk + "; echo old > " + disk});
    EXPECT_EQ(::chown(disk.c_str(), 0, row.group), 0);
    EXPECT_EQ(::chmod(disk.c_str(), row.mode), 0);
    run_ok({"setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", folder / "nbdelta", "pull",
            "--quiet", "--force", "delta:" + folder / "source.raw" + "?format=raw", disk});
    struct stat status {};
    EXPECT_EQ(::stat(disk.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777, row.expected) << row.group;
    EXPECT_EQ(status.st_uid, 1000U);
    EXPECT_EQ(status.st_gid, 1000U);
  }
}

TEST(NewFile, LeftOverPartialFileIsTakenOver) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  run_ok({"truncate", "-s", "5M", folder / "disk.raw.partial"});
  pulled({from.uri(), folder / "disk.raw"});
  EXPECT_EQ(fs::file_size(folder / "disk.raw"), kMiB);
}

/// As after a kill between link(2) and unlink(2), where the file system cannot rename without
/// replacing.
TEST(NewFile, PartialFileThatIsAFinishedCopyIsLeftAlone) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  run_ok({"sh", "-c", "echo precious > " + folder / "copy"});
  fs::create_hard_link(folder / "copy", folder / "disk.raw.partial");
  pulled({from.uri(), folder / "disk.raw"});
  EXPECT_EQ(fs::file_size(folder / "disk.raw"), kMiB);
  EXPECT_EQ(run_ok({"cat", folder / "copy"}), "precious\n");
}

/// It would be emptied, and then be the new image's name.
TEST(NewFile, PartialFileIsNoBase) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  create_image(folder / "new.qcow2.partial", "qcow2", kMiB);
  create_overlay(folder / "above.qcow2", "new.qcow2.partial", "qcow2");
  for (const char* base : {"new.qcow2.partial", "above.qcow2"}) {
    const Outcome outcome = nbdelta(
        {"pull", from.uri(), folder / "new.qcow2", "--base", base, "--base-format", "qcow2"});
    EXPECT_EQ(outcome.status, kRefused) << base;
    EXPECT_NE(outcome.err.find("new.qcow2.partial, which would be replaced"), std::string::npos)
        << outcome.err;
    EXPECT_EQ(check_complaints(folder / "new.qcow2.partial"), "");
  }
}

TEST(NewFile, PartialFileIsARegularFile) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  run_ok({"mkfifo", folder / "disk.raw.partial"});
  const Outcome outcome = nbdelta({"pull", from.uri(), folder / "disk.raw"});
  EXPECT_EQ(outcome.status, kRefused);
  EXPECT_NE(outcome.err.find("it is no regular file"), std::string::npos) << outcome.err;
  EXPECT_TRUE(fs::exists(folder / "disk.raw.partial"));
}

TEST(NewFile, PartialFileIsNoSymbolicLink) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  run_ok({"sh", "-c", "echo precious > " + folder / "other"});
  fs::create_symlink(folder / "other", folder / "disk.raw.partial");
  EXPECT_EQ(nbdelta({"pull", from.uri(), folder / "disk.raw"}).status, kRefused);
  EXPECT_EQ(run_ok({"cat", folder / "other"}), "precious\n");
}

TEST(NewFile, TwoPullsDoNotCollide) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"100M"});
  const TempFolder folder;
  Background first(
      nbdelta_command({"pull", from.uri(), folder / "disk.raw", "--rate", "20M", "--quiet"}));
  while (!fs::exists(folder / "disk.raw.partial") && first.running())
    first.wait(std::chrono::milliseconds(5));
  first.wait(std::chrono::milliseconds(50));  // it locks right after
  const Outcome second = nbdelta({"pull", from.uri(), folder / "disk.raw"});
  EXPECT_EQ(second.status, kRefused) << second.err;
  EXPECT_NE(second.err.find("another pull"), std::string::npos) << second.err;
  EXPECT_TRUE(fs::exists(folder / "disk.raw.partial"));
  const auto outcome = first.wait(std::chrono::milliseconds(60'000));
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status, 0) << outcome->err;
  EXPECT_EQ(difference(folder / "disk.raw", "raw", from.uri(), "raw"), "");
}

/// Somebody has removed what one pull writes, and another has begun it anew.
TEST(NewFile, IsNotTakenForAnotherPulls) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"32M"});
  const TempFolder folder;
  const std::string partial = folder / "disk.raw.partial";
  const auto begin = [&](const char* rate) {
    auto pull = std::make_unique<Background>(
        nbdelta_command({"pull", from.uri(), folder / "disk.raw", "--rate", rate, "--quiet"}));
    while (!fs::exists(partial) && pull->running())
      pull->wait(std::chrono::milliseconds(5));
    return pull;
  };
  const auto first = begin("16M");
  fs::remove(partial);
  const auto second = begin("1M");
  fs::remove(partial);
  const auto third = begin("8M");
  const auto outcome = first->wait(std::chrono::milliseconds(60'000));
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status, 1);
  EXPECT_NE(outcome->err.find("is no longer the file that was written"), std::string::npos)
      << outcome->err;
  EXPECT_FALSE(fs::exists(folder / "disk.raw"));
  second->signal(SIGINT);
  const auto interrupted = second->wait(std::chrono::milliseconds(10'000));
  ASSERT_TRUE(interrupted);
  EXPECT_EQ(interrupted->err.find("was removed"), std::string::npos) << interrupted->err;
  EXPECT_TRUE(fs::exists(partial));
  const auto complete = third->wait(std::chrono::milliseconds(60'000));
  ASSERT_TRUE(complete);
  EXPECT_EQ(complete->status, 0) << complete->err;
  EXPECT_EQ(difference(folder / "disk.raw", "raw", from.uri(), "raw"), "");
}

}  // namespace
}  // namespace nbdelta::testing
