// Real servers, every kind of target, compared with what QEMU's tools read.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/arithmetic.hpp"
#include "tests/client/changed_disk.hpp"
#include "tests/client/client_run.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/random.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

const Command kContext{"--context", "qemu:dirty-bitmap:b0"};

Command with_context(Command arguments) {
  arguments.insert(arguments.end(), kContext.begin(), kContext.end());
  return arguments;
}

class PullChanges : public ::testing::TestWithParam<const char*> {
 protected:
  NbdServer server() const {
    return std::string(GetParam()) == "qemu_nbd" ? disk_.qemu_nbd() : disk_.storage_daemon();
  }
  Random random_ = Random::from_environment();
  ChangedDisk disk_{random_};
};

TEST_P(PullChanges, IntoAnOverlay) {
  const NbdServer from = server();
  const auto result =
      pulled(with_context({from.uri(), disk_ / "inc.qcow2", "--base", "full.qcow2"}));
  EXPECT_TRUE(result.at("changed_view").as_bool());
  EXPECT_EQ(result.at("disk_size").to_number<std::uint64_t>(), kDisk);
  EXPECT_LT(result.at("bytes_written").to_number<std::uint64_t>(), kDisk);
  EXPECT_EQ(check_complaints(disk_ / "inc.qcow2"), "");
  EXPECT_EQ(difference(disk_ / "inc.qcow2", "qcow2", from.uri(), "raw"), "");
  const auto info = image_info(disk_ / "inc.qcow2", "qcow2");
  EXPECT_EQ(info.at("backing-filename").as_string(), "full.qcow2");
  EXPECT_EQ(info.at("backing-filename-format").as_string(), "qcow2");
}

TEST_P(PullChanges, IntoAnOverlayOverRaw) {
  const NbdServer from = server();
  pulled(with_context({from.uri(), disk_ / "inc.qcow2", "--base", "full.raw"}));
  EXPECT_EQ(difference(disk_ / "inc.qcow2", "qcow2", from.uri(), "raw"), "");
}

TEST_P(PullChanges, AppliedToTheFullImage) {
  const NbdServer from = server();
  pulled(with_context({from.uri(), disk_.full_raw(), "--apply"}));
  EXPECT_EQ(difference(disk_.full_raw(), "raw", from.uri(), "raw"), "");
  EXPECT_FALSE(std::filesystem::exists(disk_.full_raw() + ".nbdelta-unfinished"));
}

TEST_P(PullChanges, AppliedWhereZerosAreReadAlong) {
  const NbdServer from = server();
  const Command pull = with_context({from.uri(), disk_.full_raw(), "--apply"});
  Command bridged = pull;
  bridged.insert(bridged.end(), {"--bridge", "32M", "--request-size", "8M"});
  const auto result = pulled(bridged);
  EXPECT_EQ(difference(disk_.full_raw(), "raw", from.uri(), "raw"), "");
  const auto again = pulled(pull);
  EXPECT_EQ(result.at("bytes_zeroed"), again.at("bytes_zeroed"));
}

TEST_P(PullChanges, AppliedOverNbd) {
  const NbdServer from = server();
  {
    const NbdServer to = NbdServer::nbdkit("file", {disk_.full_raw()});
    pulled(with_context({from.uri(), to.uri(), "--apply"}));
  }
  EXPECT_EQ(difference(disk_.full_raw(), "raw", from.uri(), "raw"), "");
}

TEST_P(PullChanges, AppliedOverNbdWithLargeBlocks) {
  const NbdServer from = server();
  {
    const NbdServer to = NbdServer::nbdkit(
        "file", {disk_.full_raw(), "blocksize-minimum=64K", "blocksize-preferred=64K"},
        {"--filter=blocksize-policy"});
    pulled(with_context({from.uri(), to.uri(), "--apply", "--request-size", "64K"}));
  }
  EXPECT_EQ(difference(disk_.full_raw(), "raw", from.uri(), "raw"), "");
}

TEST_P(PullChanges, AppliedOverNbdWithoutWriteZeroes) {
  const NbdServer from = server();
  {
    const NbdServer to = NbdServer::nbdkit("file", {disk_.full_raw()}, {"--filter=nozero"});
    pulled(with_context({from.uri(), to.uri(), "--apply"}));
  }
  EXPECT_EQ(difference(disk_.full_raw(), "raw", from.uri(), "raw"), "");
}

TEST_P(PullChanges, WholeDiskIgnoresTheContext) {
  const NbdServer from = server();
  const auto result = pulled(with_context({from.uri(), disk_ / "new.raw", "--full"}));
  EXPECT_FALSE(result.at("changed_view").as_bool());
  EXPECT_EQ(difference(disk_ / "new.raw", "raw", from.uri(), "raw"), "");
}

TEST_P(PullChanges, MapIsWhatNbdinfoSays) {
  const NbdServer from = server();
  const auto json =
      boost::json::parse(run_ok(nbdelta_command(with_context({"map", from.uri(), "--json"}))));
  std::vector<NbdExtent> dirty;
  for (const auto& extent : json.as_array()) {
    NbdExtent next{extent.at("offset").to_number<std::uint64_t>(),
                   extent.at("length").to_number<std::uint64_t>(),
                   extent.at("type").to_number<std::uint64_t>() == 1 ? 0U : 1U};
    if (!dirty.empty() && dirty.back().type == next.type)
      dirty.back().length += next.length;
    else
      dirty.push_back(next);
  }
  EXPECT_EQ(dirty, nbdinfo_map(from.uri(), kContext[1]));
}

INSTANTIATE_TEST_SUITE_P(Servers, PullChanges, ::testing::Values("qemu_nbd", "storage_daemon"),
                         [](const auto& param) { return std::string(param.param); });

struct Target {
  const char* name;
  const char* format;
};

class PullWhole : public ::testing::TestWithParam<Target> {
 protected:
  std::string target() const { return folder_ / ("out." + std::string(GetParam().name)); }
  void check(const NbdServer& from, const Command& options = {}) {
    Command command{from.uri(), target()};
    command.insert(command.end(), options.begin(), options.end());
    pulled(command);
    EXPECT_EQ(difference(target(), GetParam().format, from.uri(), "raw"), "");
    if (std::string(GetParam().format) == "qcow2") {
      EXPECT_EQ(check_complaints(target()), "");
    }
  }
  TempFolder folder_;
};

TEST_P(PullWhole, OfASparseFile) {
  run_ok({"dd", "if=/dev/urandom", "of=" + folder_ / "disk", "bs=64K", "count=37", "status=none"});
  run_ok({"dd", "if=/dev/urandom", "of=" + folder_ / "disk", "bs=64K", "count=37", "seek=999",
          "status=none"});
  run_ok({"truncate", "-s", "100M", folder_ / "disk"});
  const NbdServer from = NbdServer::nbdkit("file", {folder_ / "disk"});
  check(from);
  EXPECT_LT(std::filesystem::file_size(target()), 100 * kMiB + 1);
  struct stat status {};
  ASSERT_EQ(::stat(target().c_str(), &status), 0);
  EXPECT_LT(static_cast<std::uint64_t>(status.st_blocks) * 512, 6 * kMiB);
}

TEST_P(PullWhole, OfASizeThatIsNoMultipleOfAnything) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"5000123"});
  pulled({from.uri(), target()});
  const std::string back = folder_ / "back.raw";
  qemu_img({"convert", "-f", GetParam().format, "-O", "raw", target(), back});
  std::filesystem::resize_file(back, 5'000'123);  // qcow2 ends at a sector
  run_ok({"nbdcopy", from.uri(), folder_ / "copy.raw"});
  run_ok({"cmp", back, folder_ / "copy.raw"});
}

TEST_P(PullWhole, WithManyConnectionsAndSmallRequests) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"3M"});
  check(from, {"--connections", "7", "--depth", "9", "--request-size", "12K"});
}

TEST_P(PullWhole, FromAServerWithBlocks) {
  const NbdServer from = NbdServer::nbdkit(
      "pattern",
      {"3M", "blocksize-minimum=4K", "blocksize-maximum=64K", "blocksize-error-policy=error"},
      {"--filter=blocksize-policy"});
  check(from);
}

TEST_P(PullWhole, FromAServerThatIsEmpty) {
  const NbdServer from = NbdServer::nbdkit("memory", {"0"});
  pulled({from.uri(), target()});
  EXPECT_TRUE(std::filesystem::exists(target()));
}

TEST_P(PullWhole, FromAServerOfTheOldStyle) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"3M"}, {"--oldstyle"});
  pulled({from.uri(), target()});
  run_ok({"nbdcopy", from.uri(), folder_ / "copy.raw"});
  EXPECT_EQ(difference(target(), GetParam().format, folder_ / "copy.raw", "raw"), "");
}

TEST_P(PullWhole, FromAServerWithoutExtents) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"3M"}, {"--filter=noextents"});
  check(from);
}

INSTANTIATE_TEST_SUITE_P(Targets, PullWhole,
                         ::testing::Values(Target{"raw", "raw"}, Target{"qcow2", "qcow2"}),
                         [](const auto& param) { return std::string(param.param.name); });

TEST(Pull, ToNullReadsEverything) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"10M"});
  const auto result = pulled({from.uri(), "null:"});
  EXPECT_EQ(result.at("bytes_read").to_number<std::uint64_t>(), 10 * kMiB);
  EXPECT_EQ(result.at("connections").to_number<int>(), 2);
}

TEST(Pull, KeepsToTheRate) {
  const NbdServer from = NbdServer::nbdkit("pattern", {"10M"});
  const auto result = pulled({from.uri(), "null:", "--rate", "5M"});
  EXPECT_NEAR(result.at("seconds").to_number<double>(), 2.0, 0.7);
}

TEST(Pull, BridgesSmallGapsAndWritesThemAsWhatTheyAre) {
  const TempFolder folder;
  create_image(folder / "disk.qcow2", "qcow2", 4 * kMiB, "cluster_size=4k");
  std::vector<std::string> commands;
  for (int i = 0; i < 64; ++i)
    commands.push_back("write -q -P 7 " + std::to_string(i * 8) + "k 4k");
  qemu_io(folder / "disk.qcow2", "qcow2", commands);
  const NbdServer from = NbdServer::qemu_nbd({"-r", "-f", "qcow2", folder / "disk.qcow2"});
  const auto number = [](const boost::json::value& value) {
    return value.to_number<std::uint64_t>();
  };
  const auto bridged = pulled({from.uri(), folder / "a.raw", "--bridge", "4K"});
  const auto exact = pulled({from.uri(), folder / "b.raw", "--bridge", "0"});
  EXPECT_EQ(number(bridged.at("bytes_written")), 64 * 4 * kKiB);
  EXPECT_EQ(number(exact.at("bytes_read")), 64 * 4 * kKiB);
  EXPECT_EQ(number(exact.at("requests")), 64U);
  EXPECT_EQ(number(bridged.at("requests")), 2U);
  EXPECT_EQ(difference(folder / "a.raw", "raw", from.uri(), "raw"), "");
  EXPECT_EQ(difference(folder / "b.raw", "raw", from.uri(), "raw"), "");
}

/// Where its runs are long; others get 256 KiB.
TEST(Pull, LongRequestsAreForOurPlugin) {
  const TempFolder folder;
  create_image(folder / "long.raw", "raw", 8 * kMiB);
  qemu_io(folder / "long.raw", "raw", {"write -q -P 1 0 8M"});
  create_image(folder / "short.qcow2", "qcow2", 8 * kMiB);
  std::vector<std::string> commands;
  for (int i = 0; i < 64; ++i)
    commands.push_back(fmt::format("write -q -P 7 {}k 64k", i * 128));
  qemu_io(folder / "short.qcow2", "qcow2", commands);
  const auto requests = [](const NbdServer& server) {
    return pulled({server.uri(), "null:", "--bridge", "64K"}).at("requests").to_number<unsigned>();
  };
  EXPECT_EQ(requests(NbdServer::delta({folder / "long.raw", "format=raw"})), 8U);
  EXPECT_EQ(requests(NbdServer::nbdkit("file", {folder / "long.raw"})), 32U);
  EXPECT_EQ(requests(NbdServer::delta({folder / "short.qcow2"})), 32U);
}

TEST(Pull, IntoANbdServerWithLargerBlocks) {
  const TempFolder folder;
  create_image(folder / "disk.raw", "raw", kMiB);
  qemu_io(folder / "disk.raw", "raw", {"write -q -P 1 4k 4k", "write -q -P 2 300k 72k"});
  const NbdServer from = NbdServer::nbdkit("file", {folder / "disk.raw"});
  create_image(folder / "copy.raw", "raw", kMiB);
  qemu_io(folder / "copy.raw", "raw", {"write -q -P 9 0 1M"});
  {
    const NbdServer to =
        NbdServer::nbdkit("file",
                          {folder / "copy.raw", "blocksize-minimum=64K", "blocksize-preferred=64K",
                           "blocksize-maximum=1M", "blocksize-error-policy=error"},
                          {"--filter=blocksize-policy"});
    pulled({from.uri(), to.uri()});
  }
  EXPECT_EQ(difference(folder / "copy.raw", "raw", folder / "disk.raw", "raw"), "");
}

TEST(Pull, IntoANbdServerThatHasOldDataAndNoWriteZeroes) {
  const TempFolder folder;
  create_image(folder / "disk.raw", "raw", 5 * kMiB);
  qemu_io(folder / "disk.raw", "raw", {"write -q -P 1 2M 64k"});
  const NbdServer from = NbdServer::nbdkit("file", {folder / "disk.raw"});
  create_image(folder / "copy.raw", "raw", 5 * kMiB);
  qemu_io(folder / "copy.raw", "raw", {"write -q -P 9 0 5M"});
  {
    const NbdServer to = NbdServer::nbdkit("file", {folder / "copy.raw"}, {"--filter=nozero"});
    pulled({from.uri(), to.uri()});
  }
  EXPECT_EQ(difference(folder / "copy.raw", "raw", folder / "disk.raw", "raw"), "");
}

TEST(Pull, FromQemuNbdThatEndsWithItsFirstClient) {
  const TempFolder folder;
  create_image(folder / "disk.qcow2", "qcow2", kMiB);
  qemu_io(folder / "disk.qcow2", "qcow2", {"write -q -P 7 0 1M"});
  Background server({"qemu-nbd", "-r", "-f", "qcow2", "-k", folder / "s", "--pid-file",
                     folder / "pid", folder / "disk.qcow2"});
  while (!std::filesystem::exists(folder / "pid") && server.running())
    server.wait(std::chrono::milliseconds(5));
  pulled({"nbd+unix:///?socket=" + folder / "s", folder / "out.raw"});
  EXPECT_EQ(difference(folder / "disk.qcow2", "qcow2", folder / "out.raw", "raw"), "");
}

TEST(Pull, NamesThatAreNotUtf8DoNotSpoilTheJson) {
  const TempFolder folder;
  const std::string source = folder / "disk\xff.raw";
  create_image(source, "raw", kMiB);
  const auto result = pulled({"delta:" + source + "?format=raw", folder / "copy\xfe.raw"});
  EXPECT_EQ(result.at("target").as_string(), (folder / "copy\ufffd.raw").c_str());
  EXPECT_TRUE(result.at("source").as_string().ends_with("disk\ufffd.raw?format=raw"));
  EXPECT_EQ(difference(folder / "copy\xfe.raw", "raw", source, "raw"), "");
}

/// Each with the message that is on stderr too.
TEST(Pull, FailuresAreObjectsToo) {
  const TempFolder folder;
  create_image(folder / "disk.raw", "raw", kMiB);
  const auto failure = [&](const Command& arguments, int status) {
    const Outcome outcome = nbdelta(joined({"pull", "--json"}, arguments));
    EXPECT_EQ(outcome.status, status) << outcome.err;
    const boost::json::value object = boost::json::parse(outcome.out);
    EXPECT_NE(outcome.err.find(object.at("error").as_string().c_str()), std::string::npos)
        << outcome.out << outcome.err;
    return std::string(object.at("result").as_string());
  };
  const std::string nobody = "nbd+unix:///?socket=" + folder / "nowhere";
  const std::string source = "delta:" + folder / "disk.raw" + "?format=raw";
  EXPECT_EQ(failure({nobody, "null:"}, 1), "failed");
  EXPECT_EQ(failure({source, folder / "disk.raw"}, 3), "refused");         // its name tells it
  EXPECT_EQ(failure({source, folder / "nowhere/new.raw"}, 3), "refused");  // once the map is known
  EXPECT_EQ(nbdelta({"pull", "--json", source, "null:", "--base", "x.qcow2"}).out, "");
  EXPECT_EQ(nbdelta({"pull", "--json", "--bogus"}).out, "");
}

}  // namespace
}  // namespace nbdelta::testing
