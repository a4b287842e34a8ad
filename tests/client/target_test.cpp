// What a target refuses, and what becomes of files when things go wrong.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "base/arithmetic.hpp"
#include "base/file.hpp"
#include "client/target/qcow2_target.hpp"
#include "image/image_lock.hpp"
#include "image/view.hpp"
#include "tests/client/client_run.hpp"
#include "tests/client/scripted_server.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;

constexpr int kUsage = 2;
constexpr int kRefused = 3;

struct Refusal {
  const char* name;
  Command arguments;  // after the source, run in the folder
  int status;
  const char* message;  // a part of it
};

/// The folder has old.raw (1 MiB), what the constructor adds, and links to them; the source is a
/// changed view of 1 MiB.
class TargetRefusal : public ::testing::TestWithParam<Refusal> {
 protected:
  TargetRefusal() {
    run_ok({"truncate", "-s", "1M", folder_ / "old.raw"});
    run_ok({"truncate", "-s", "512", folder_ / "small.raw"});
    fs::create_directory(folder_ / "dir");
    create_image(folder_ / "dir/base.qcow2", "qcow2", kMiB);
    run_ok({"cp", folder_ / "dir/base.qcow2", folder_ / "dir/base.bin"});
    run_ok({"cp", folder_ / "dir/base.qcow2", folder_ / "image.img"});
    run_ok({"truncate", "-s", "1M", folder_ / "image.img"});
    run_ok({"truncate", "-s", "1048577", folder_ / "large.raw"});
    run_ok({"mkfifo", folder_ / "pipe"});
    fs::create_symlink("old.raw", folder_ / "link.raw");
    fs::create_symlink("nothing.raw", folder_ / "dangling.raw");
    create_overlay(folder_ / "dir/above.qcow2", "base.qcow2", "qcow2");
    create_overlay(folder_ / "dir/top.qcow2", "above.qcow2", "qcow2");
    create_image(folder_ / "dir/unfinished.raw", "raw", kMiB);
    run_ok({"touch", folder_ / "dir/unfinished.raw.nbdelta-unfinished"});
    create_overlay(folder_ / "dir/above-unfinished.qcow2", "unfinished.raw", "raw");
    fs::create_symlink("unfinished.raw", folder_ / "dir/link-to-unfinished.raw");
  }

  static ScriptedServer::Script changed_view() {
    ScriptedServer::Script script;
    script.description = std::string(image::kChangedViewDescription) + "test";
    return script;
  }

  TempFolder folder_;
  ScriptedServer server_{changed_view()};
};

TEST_P(TargetRefusal, SaysWhatToDoAndTouchesNothing) {
  const auto listing = [&] {
    return run_ok({"sh", "-c",
                   "cd " + folder_.path() +
                       " && ls -lRi --time-style=full-iso && find . -type f -exec cksum {} +"});
  };
  const std::string before = listing();
  Command command{"pull", server_.uri()};
  command.insert(command.end(), GetParam().arguments.begin(), GetParam().arguments.end());
  const Outcome outcome =
      nbdelta(command, {.input = {}, .environment = {}, .folder = folder_.path()});
  EXPECT_EQ(outcome.status, GetParam().status) << outcome.err;
  EXPECT_NE(outcome.err.find(GetParam().message), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(listing(), before);
}

INSTANTIATE_TEST_SUITE_P(
    Rows, TargetRefusal,
    ::testing::Values(
        Refusal{"exists", {"old.raw"}, kRefused, "--force replaces it"},
        Refusal{"exists_as_qcow2", {"dir/base.qcow2"}, kRefused, "--force replaces it"},
        Refusal{
            "changes_into_raw", {"new.raw"}, kRefused, "use --apply on the previous full image"},
        Refusal{"nothing_to_apply_to", {"new.raw", "--apply"}, kRefused, "--apply needs an image"},
        Refusal{"apply_to_a_folder", {"dir", "--apply"}, kRefused, "neither a regular file"},
        Refusal{"apply_to_qcow2", {"dir/base.qcow2", "--apply"}, kUsage, "--base"},
        Refusal{"apply_to_qcow2_in_disguise",
                {"image.img", "--apply"},
                kRefused,
                "begins like a qcow2 image"},
        Refusal{"too_small", {"small.raw", "--apply"}, kRefused, "a larger one is needed"},
        Refusal{"base_of_raw", {"new.raw", "--base", "dir/base.qcow2"}, kUsage, "qcow2 target"},
        Refusal{
            "base_format_alone", {"new.qcow2", "--base-format", "raw"}, kUsage, "without --base"},
        Refusal{"base_of_unknown_format",
                {"dir/new.qcow2", "--base", "base.bin"},
                kUsage,
                "--base-format"},
        Refusal{"base_missing", {"new.qcow2", "--base", "none.qcow2"}, kRefused, "no such file"},
        Refusal{"base_relative_to_us",
                {"dir/new.qcow2", "--base", "dir/base.qcow2"},
                kRefused,
                "write --base base.qcow2"},
        Refusal{"base_is_a_folder",
                {"new.qcow2", "--base", "dir", "--base-format", "raw"},
                kRefused,
                "neither a regular file"},
        Refusal{"base_is_a_pipe",
                {"new.qcow2", "--base", "pipe", "--base-format", "raw"},
                kRefused,
                "neither a regular file"},
        Refusal{"base_is_the_target",
                {"dir/base.qcow2", "--force", "--base", "base.qcow2"},
                kRefused,
                "the target itself"},
        Refusal{
            "base_with_full",
            {"new.qcow2", "--base", "dir/base.qcow2", "--full", "--context", "qemu:dirty-bitmap:x"},
            kRefused,
            "leave --base out"},
        Refusal{"unknown_format", {"new", "--format", "vmdk"}, kUsage, "vmdk"},
        Refusal{"a_sources_uri", {"delta:new.raw"}, kUsage, "./delta:new.raw"},
        Refusal{"format_of_null", {"null:", "--format", "raw"}, kUsage, "null:"},
        Refusal{"bad_rate", {"null:", "--rate", "fast"}, kUsage, "--rate"},
        Refusal{"bad_request_size", {"null:", "--request-size", "1"}, kUsage, "--request-size"},
        Refusal{"bad_connections", {"null:", "--connections", "0"}, kUsage, "--connections"},
        Refusal{"not_a_folder", {"old.raw/new.qcow2"}, kRefused, "Not a directory"},
        Refusal{"no_folder", {"nowhere/new.qcow2"}, kRefused, "nowhere/new.qcow2.partial"},
        Refusal{"link_to_nothing",
                {"dangling.raw", "--full", "--force"},
                kRefused,
                "a symbolic link that leads nowhere"},
        Refusal{"apply_to_a_link_to_nothing",
                {"dangling.raw", "--apply"},
                kRefused,
                "a symbolic link that leads nowhere"},
        Refusal{"link_without_force", {"link.raw", "--full"}, kRefused, "--force replaces it"},
        Refusal{"larger_than_the_disk",
                {"large.raw", "--apply"},
                kRefused,
                "--force writes into it all the same"},
        Refusal{"force_on_a_folder", {"dir", "--full", "--force"}, kRefused, "no regular file"},
        Refusal{"force_on_a_pipe", {"pipe", "--full", "--force"}, kRefused, "no regular file"},
        Refusal{"base_rests_on_the_target",
                {"dir/base.qcow2", "--force", "--base", "above.qcow2"},
                kRefused,
                "it rests on dir/base.qcow2"},
        Refusal{"base_rests_on_the_target_further_down",
                {"dir/base.qcow2", "--force", "--base", "top.qcow2"},
                kRefused,
                "it rests on dir/base.qcow2"},
        Refusal{"base_is_unfinished",
                {"dir/new.qcow2", "--base", "unfinished.raw"},
                kRefused,
                "unfinished.raw was not finished"},
        Refusal{"base_rests_on_what_is_unfinished",
                {"dir/new.qcow2", "--base", "above-unfinished.qcow2"},
                kRefused,
                "unfinished.raw was not finished"},
        Refusal{"base_leads_to_what_is_unfinished",
                {"dir/new.qcow2", "--base", "link-to-unfinished.raw"},
                kRefused,
                "was not finished"}),
    [](const auto& param) { return std::string(param.param.name); });

TEST(Target, ChangesWithoutBaseAreAllowedWithAWarning) {
  ScriptedServer::Script script;
  script.description = std::string(image::kChangedViewDescription) + "test";
  const ScriptedServer server(script);
  const TempFolder folder;
  const Outcome outcome = nbdelta({"pull", server.uri(), folder / "inc.qcow2"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("qemu-img rebase -u"), std::string::npos) << outcome.err;
}

TEST(Target, ImageInUseIsNotAppliedTo) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  create_image(folder / "disk.raw", "raw", kMiB);
  const NbdServer user = NbdServer::qemu_nbd({"-r", "-f", "raw", folder / "disk.raw"});
  const Outcome outcome = nbdelta({"pull", from.uri(), folder / "disk.raw", "--apply"});
  EXPECT_EQ(outcome.status, kRefused) << outcome.err;
  EXPECT_FALSE(fs::exists(folder / "disk.raw.nbdelta-unfinished"));
}

TEST(Target, MarkOfAnotherSourceIsRespected) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  create_image(folder / "disk.raw", "raw", kMiB);
  const std::string mark = folder / "disk.raw.nbdelta-unfinished";
  const Command pull{"pull", from.uri(), folder / "disk.raw", "--apply"};
  run_ok({"sh", "-c", "echo nbd://elsewhere/ > " + mark});
  const Outcome refused = nbdelta(pull);
  EXPECT_EQ(refused.status, kRefused);
  EXPECT_NE(refused.err.find("nbd://elsewhere/"), std::string::npos) << refused.err;
  EXPECT_EQ(run_ok({"cat", mark}), "nbd://elsewhere/\n");

  run_ok({"sh", "-c", "echo '" + from.uri() + "' > " + mark});
  EXPECT_EQ(nbdelta(pull).status, 0);
  EXPECT_FALSE(fs::exists(mark));

  run_ok({"sh", "-c", "echo nbd://elsewhere/ > " + mark});
  EXPECT_EQ(
      run(nbdelta_command({"pull", from.uri(), folder / "disk.raw", "--apply", "--force"})).status,
      0);
  EXPECT_FALSE(fs::exists(mark));
}

/// A mark that nobody can read would be in the next pull's way.
TEST(Target, MarkThatCannotBeWrittenIsNotLeft) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  create_image(folder / "disk.raw", "raw", kMiB);
  const Command pull = nbdelta_command({"pull", from.uri(), folder / "disk.raw", "--apply"});
  Command limited{"sh", "-c", "ulimit -f 0; trap '' XFSZ; exec \"$@\"", "sh"};
  limited.insert(limited.end(), pull.begin(), pull.end());
  const Outcome outcome = run(limited);
  EXPECT_EQ(outcome.status, kRefused);  // its message could not be written either
  std::size_t files = 0;
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    EXPECT_EQ(entry.path().filename(), "disk.raw");
    ++files;
  }
  EXPECT_EQ(files, 1U);
}

TEST(Target, NbdThatIsTooSmallOrReadOnlyIsRefused) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"2M"});
  const NbdServer small = NbdServer::nbdkit("memory", {"1M"});
  const NbdServer fixed = NbdServer::nbdkit("memory", {"2M"}, {"-r"});
  EXPECT_EQ(nbdelta({"pull", from.uri(), small.uri()}).status, kRefused);
  EXPECT_EQ(nbdelta({"pull", from.uri(), fixed.uri()}).status, kRefused);
}

TEST(Target, NbdThatFailsIsAnError) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"2M"});
  const NbdServer to = NbdServer::nbdkit(
      "memory", {"2M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"}, {"--filter=error"});
  const Outcome outcome = nbdelta({"pull", from.uri(), to.uri()});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("No space left on device"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("only partly written"), std::string::npos) << outcome.err;
}

/// As cp and qemu-img do.
TEST(Target, ForceFollowsALink) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  fs::create_directory(folder / "real");
  run_ok({"sh", "-c", "echo old > " + folder / "real/disk.raw"});
  fs::create_symlink("real/disk.raw", folder / "link.raw");
  pulled({from.uri(), folder / "link.raw", "--force"});
  EXPECT_TRUE(fs::is_symlink(folder / "link.raw"));
  EXPECT_EQ(difference(folder / "real/disk.raw", "raw", from.uri(), "raw"), "");
  EXPECT_EQ(run_ok({"ls", folder / "real"}), "disk.raw\n");
}

TEST(Target, MarkIsBesideTheFileThatALinkLeadsTo) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  fs::create_directory(folder / "real");
  create_image(folder / "real/disk.raw", "raw", kMiB);
  run_ok({"sh", "-c", "echo nbd://elsewhere/ > " + folder / "real/disk.raw.nbdelta-unfinished"});
  fs::create_symlink("real/disk.raw", folder / "link.raw");
  const Outcome refused = nbdelta({"pull", from.uri(), folder / "link.raw", "--apply"});
  EXPECT_EQ(refused.status, kRefused);
  EXPECT_NE(refused.err.find("nbd://elsewhere/"), std::string::npos) << refused.err;
}

TEST(Target, LargerFileIsAppliedToWithForceAndKeepsItsRest) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  create_image(folder / "disk.raw", "raw", 2 * kMiB);
  qemu_io(folder / "disk.raw", "raw", {"write -q -P 9 1M 1M"});
  pulled({from.uri(), folder / "disk.raw", "--apply", "--force"});
  qemu_io(folder / "disk.raw", "raw", {"read -P 9 1M 1M"});
  fs::resize_file(folder / "disk.raw", kMiB);
  EXPECT_EQ(difference(folder / "disk.raw", "raw", from.uri(), "raw"), "");
}

/// As where a disk's size was rounded up to sectors.
TEST(Target, FileThatEndsInTheSameSectorIsAppliedTo) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"100000"});
  const TempFolder folder;
  create_image(folder / "disk.raw", "raw", 100'352);
  pulled({from.uri(), folder / "disk.raw", "--apply"});
}

/// QEMU would take "a" for a protocol.
TEST(Target, BaseWithAColonIsAFile) {
  const TempFolder folder;
  create_image(folder / "a:b.qcow2", "qcow2", kMiB);
  qemu_io(folder / "a:b.qcow2", "qcow2", {"write -q -P 7 0 64k"});
  ScriptedServer::Script script;
  script.description = std::string(image::kChangedViewDescription) + "nothing has changed";
  script.on_request = [](const auto& session, const ScriptedServer::Request& request) {
    session.reply_status(request, 0, {{request.length, 1}});
    return ScriptedServer::Next::handled;
  };
  const ScriptedServer from(script);
  pulled({from.uri(), folder / "inc.qcow2", "--base", "a:b.qcow2"});
  EXPECT_EQ(image_info(folder / "inc.qcow2", "qcow2").at("backing-filename").as_string(),
            "./a:b.qcow2");
  qemu_io(folder / "inc.qcow2", "qcow2", {"read -P 7 0 64k"});
}

TEST(Target, ImageInUseIsNotReplaced) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  for (const char* format : {"raw", "qcow2"}) {
    const std::string disk = folder / "disk." + format;
    create_image(disk, format, kMiB);
    const NbdServer user = NbdServer::qemu_nbd({"-r", "-f", format, disk});
    const Outcome outcome = nbdelta({"pull", from.uri(), disk, "--force"});
    EXPECT_EQ(outcome.status, kRefused) << outcome.err;
    EXPECT_NE(outcome.err.find("it is not replaced"), std::string::npos) << outcome.err;
    EXPECT_FALSE(fs::exists(disk + ".partial"));
  }
}

/// A block device that nothing is behind: if it were opened, that would fail.
TEST(Target, ChangesAloneAreNotWrittenToADeviceByForce) {
  const TempFolder folder;
  constexpr unsigned kLocalMajor = 240;  // Linux, admin-guide/devices.txt: local use
  if (::mknod((folder / "device").c_str(), S_IFBLK | 0600, makedev(kLocalMajor, 77)) != 0)
    GTEST_SKIP() << "only root can make a device";
  ScriptedServer::Script script;
  script.description = std::string(image::kChangedViewDescription) + "test";
  const ScriptedServer from(script);
  const Outcome outcome = nbdelta({"pull", from.uri(), folder / "device", "--force"});
  EXPECT_EQ(outcome.status, kRefused);
  EXPECT_NE(outcome.err.find("tells only what has changed"), std::string::npos) << outcome.err;
}

/// Whose disk would lack all that has not changed.
TEST(Target, ChangesAloneAreNotWrittenToAServer) {
  ScriptedServer::Script script;
  script.description = std::string(image::kChangedViewDescription) + "test";
  const ScriptedServer from(script);
  ScriptedServer::Script target;
  target.read_only = false;
  const ScriptedServer to(target);
  for (const Command& options : {Command{}, Command{"--force"}}) {
    const Outcome outcome = nbdelta(joined({"pull", from.uri(), to.uri()}, options));
    EXPECT_EQ(outcome.status, kRefused);
    EXPECT_NE(outcome.err.find("--apply writes that over the previous state"), std::string::npos)
        << outcome.err;
    EXPECT_EQ(outcome.err.find("partly written"), std::string::npos) << outcome.err;
  }
  EXPECT_EQ(to.connections(), 0U);
  pulled({from.uri(), to.uri(), "--apply"});
  EXPECT_GT(to.connections(), 0U);
}

TEST(Target, ReadOnlyDeviceIsRefused) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"1M"});
  const TempFolder folder;
  run_ok({"truncate", "-s", "1M", folder / "disk.raw"});
  const Outcome made = run({"losetup", "--find", "--show", "--read-only", folder / "disk.raw"});
  if (made.status != 0)
    GTEST_SKIP() << "no loop device can be made here: " << made.err;
  const std::string device = made.out.substr(0, made.out.find('\n'));
  for (const char* option : {"--apply", "--force"}) {
    const Outcome outcome = nbdelta({"pull", from.uri(), device, option});
    EXPECT_EQ(outcome.status, kRefused) << option;
    EXPECT_NE(outcome.err.find(device + ": may not be written to"), std::string::npos)
        << outcome.err;
    EXPECT_EQ(outcome.err.find("partly written"), std::string::npos) << outcome.err;
  }
  run_ok({"losetup", "--detach", device});
}

/// What a lost server has of the writes before is not known: no second attempt.
TEST(Target, LostNbdTargetEndsThePull) {
  ScriptedServer::Script half;
  half.on_request = [](const auto& session, const ScriptedServer::Request& request) {
    if (request.type != ScriptedServer::Type::block_status)
      return ScriptedServer::Next::usual;
    const std::uint32_t data = request.length / 2;
    session.reply_status(request, 0, {{data, 0}, {request.length - data, 2}});
    return ScriptedServer::Next::handled;
  };
  const ScriptedServer from(half);
  for (const auto lost_at :
       {ScriptedServer::Type::write, ScriptedServer::Type::zero, ScriptedServer::Type::flush}) {
    ScriptedServer::Script script;
    script.read_only = false;
    script.on_request = [&](auto&, const ScriptedServer::Request& request) {
      return request.type == lost_at ? ScriptedServer::Next::close : ScriptedServer::Next::usual;
    };
    const ScriptedServer to(script);
    const Outcome outcome = nbdelta({"pull", from.uri(), to.uri(), "--connections", "1"});
    EXPECT_EQ(outcome.status, 1);
    EXPECT_NE(outcome.err.find("the target was lost: " + to.uri()), std::string::npos)
        << outcome.err;
    EXPECT_NE(outcome.err.find("only partly written"), std::string::npos) << outcome.err;
    EXPECT_EQ(to.connections(), 1U);
  }
}

TEST(Target, FileSizeLimitRemovesThePartialFile) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"20M"});
  const TempFolder folder;
  for (const char* name : {"disk.raw", "disk.qcow2"}) {
    const Outcome outcome = run({"sh", "-c", "ulimit -f 8192; exec \"$@\"", "sh", nbdelta_program(),
                                 "pull", from.uri(), folder / name});
    EXPECT_EQ(outcome.status, 1) << outcome.err;
    EXPECT_NE(outcome.err.find("partial was removed"), std::string::npos) << outcome.err;
    EXPECT_TRUE(fs::is_empty(folder.path()));
  }
}

/// A tmpfs of 4 MiB; only root can mount one.
class FullFileSystem : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0)
      GTEST_SKIP() << "only root can mount a small file system";
    if (::mount("tmpfs", folder_.path().c_str(), "tmpfs", 0, "size=4m") != 0)
      GTEST_SKIP() << "mount is not permitted here";
  }
  ~FullFileSystem() override { ::umount2(folder_.path().c_str(), MNT_DETACH); }
  TempFolder folder_;
};

TEST_F(FullFileSystem, IsNoticedBeforehand) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"20M"});
  for (const char* name : {"disk.raw", "disk.qcow2"}) {
    const Outcome outcome = nbdelta({"pull", from.uri(), folder_ / name});
    EXPECT_EQ(outcome.status, kRefused);
    EXPECT_NE(outcome.err.find("needs 20"), std::string::npos) << outcome.err;
    EXPECT_TRUE(fs::is_empty(folder_.path()));
  }
}

/// Of 64 GiB that were changed to zero the tables alone are larger than the file system.
TEST_F(FullFileSystem, IsNoticedBeforeTheTablesAreWritten) {
  ScriptedServer::Script script;
  script.size = [](unsigned) { return 64 * kGiB; };
  script.description = std::string(image::kChangedViewDescription) + "zeros";
  script.on_request = [](const auto& session, const ScriptedServer::Request& request) {
    session.reply_status(request, 0, {{request.length, 2}});
    return ScriptedServer::Next::handled;
  };
  const ScriptedServer from(script);
  const Outcome outcome = nbdelta({"pull", from.uri(), folder_ / "disk.qcow2"});
  EXPECT_EQ(outcome.status, kRefused) << outcome.err;
  EXPECT_NE(outcome.err.find("needs 8"), std::string::npos) << outcome.err;
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

TEST_F(FullFileSystem, IsNoticedInTheMiddle) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"3M"});
  Background client(nbdelta_command(
      {"pull", from.uri(), folder_ / "disk.raw", "--rate", "1M", "--request-size", "64K"}));
  while (!fs::exists(folder_ / "disk.raw.partial") && client.running())
    client.wait(std::chrono::milliseconds(5));
  client.wait(std::chrono::milliseconds(200));
  run({"dd", "if=/dev/zero", "of=" + folder_ / "filler", "bs=64K", "status=none"});
  const auto outcome = client.wait(std::chrono::milliseconds(20'000));
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status, 1);
  EXPECT_NE(outcome->err.find("No space left on device"), std::string::npos) << outcome->err;
  EXPECT_NE(outcome->err.find("disk.raw.partial was removed"), std::string::npos) << outcome->err;
  EXPECT_FALSE(fs::exists(folder_ / "disk.raw"));
}

TEST_F(FullFileSystem, UnderAnAppliedImageIsAnErrorAndTheMarkStays) {
  run_ok({"truncate", "-s", "20M", folder_ / "disk.raw"});
  const NbdServer from = NbdServer::nbdkit("pattern", {"20M"});
  const Outcome outcome = nbdelta({"pull", from.uri(), folder_ / "disk.raw", "--apply"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("marked so by"), std::string::npos) << outcome.err;
  EXPECT_TRUE(fs::exists(folder_ / "disk.raw.nbdelta-unfinished"));
}

/// Of millions of extents a second map would be as large.
TEST(Qcow2Target, FollowsTheMapItselfUnlessItsClustersAreLarger) {
  using image::State;
  const TempFolder folder;
  for (const std::uint64_t first : {64 * kKiB, kKiB}) {
    image::ExtentMap map;
    map.append(first, State::data);
    map.append(64 * kKiB, State::unchanged);
    map.append(100, State::zero);
    client::asio::io_context loop;
    client::target::Qcow2Target target(folder / "new.qcow2", client::target::Existing::refuse, {});
    const image::ExtentMap& followed =
        target.prepare({.source = "test",
                        .disk_size = map.size(),
                        .contents = client::target::Contents::changes,
                        .map = &map},
                       loop);
    EXPECT_EQ(&followed == &map, first == 64 * kKiB) << first;
    EXPECT_EQ(followed.size(), map.size());
    target.abandon();
  }
}

}  // namespace
}  // namespace nbdelta::testing
