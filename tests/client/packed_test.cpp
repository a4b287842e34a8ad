// Pulls from the packed export beside a changed view, compared with those that do without.

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>

#include "tests/client/changed_disk.hpp"
#include "tests/client/client_run.hpp"

namespace nbdelta::testing {
namespace {

bool has_data(const std::string& path) {
  const File file = File::open(path, O_RDONLY);
  return ::lseek(file.fd(), 0, SEEK_DATA) >= 0;
}

class PackedPull : public ::testing::Test {
 protected:
  static std::uint64_t number(const boost::json::value& result, const char* member) {
    return result.at(member).to_number<std::uint64_t>();
  }
  std::string direct() const { return "delta:" + disk_.image() + "?bitmap=b0"; }
  /// The bytes came packed: no gap was read along, and no request was shorter than it must be.
  void expect_packed(const boost::json::value& result, std::uint64_t request) const {
    EXPECT_EQ(number(result, "bytes_read"), number(result, "bytes_written"));
    EXPECT_EQ(number(result, "requests"),
              (number(result, "bytes_written") + request - 1) / request);
  }
  /// The plugin with packed exports.
  NbdServer serve(Command parameters, const Command& options = {}) const {
    parameters.push_back("packed=on");
    return NbdServer::delta(parameters, options);
  }
  /// nbdkit that may end by itself.
  static Background serve_at(const std::string& socket, const Command& arguments) {
    Command command = nbdkit_command();
    command.insert(command.end(), {"--foreground", "--unix", socket});
    command.insert(command.end(), arguments.begin(), arguments.end());
    Background server(command);
    while (!std::filesystem::exists(socket) && server.running())
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return server;
  }
  void expect_equal(const std::string& file, const std::string& format) const {
    EXPECT_EQ(difference(file, format, disk_.image(), "qcow2"), "") << file;
  }

  Random random_ = Random::from_environment();
  ChangedDisk disk_{random_};
};

TEST_F(PackedPull, IntoEveryKindOfTarget) {
  const NbdServer server = serve({disk_.image()});
  const std::string source = server.uri("dirty:b0");
  const std::string overlay = disk_ / "inc.qcow2";
  expect_packed(pulled({source, overlay, "--base", "full.qcow2"}), 256 * kKiB);
  EXPECT_EQ(check_complaints(overlay), "");
  expect_equal(overlay, "qcow2");

  const std::string applied = disk_ / "applied.raw";
  std::filesystem::copy_file(disk_.full_raw(), applied);
  expect_packed(pulled({source, applied, "--apply"}), 256 * kKiB);
  expect_equal(applied, "raw");

  {
    const NbdServer to = NbdServer::nbdkit("file", {disk_.full_raw()});
    expect_packed(pulled({source, to.uri()}), 256 * kKiB);
  }
  expect_equal(disk_.full_raw(), "raw");
}

TEST_F(PackedPull, IsWhatADirectOneIs) {
  const NbdServer server = serve({disk_.image()});
  for (const char* request : {"64K", "256K", "1M"}) {
    const auto packed = pulled({server.uri("dirty:b0"), "null:", "--request-size", request});
    const auto direct = pulled({this->direct(), "null:"});
    for (const char* member : {"disk_size", "extents", "bytes_written", "bytes_zeroed"})
      EXPECT_EQ(packed.at(member), direct.at(member)) << member;
  }
}

TEST_F(PackedPull, OfAnOverlaysLayer) {
  qemu_img({"create", "-f", "qcow2", "-b", disk_.image(), "-F", "qcow2", disk_ / "over.qcow2"});
  qemu_io(disk_ / "over.qcow2", "qcow2",
          {"write -q -P 7 1M 100k", "write -q -z 2M 64k", "write -q -P 9 20M 1M"});
  const NbdServer server = serve({disk_ / "over.qcow2", "backing=" + std::string(disk_ / "")});
  const std::string copy = disk_ / "copy.raw";
  qemu_img({"convert", "-O", "raw", disk_.image(), copy});
  expect_packed(pulled({server.uri("layer"), copy, "--apply"}), 256 * kKiB);
  EXPECT_EQ(difference(copy, "raw", disk_ / "over.qcow2", "qcow2"), "");
}

/// A target in larger blocks wants what lies around the changes too.
TEST_F(PackedPull, IsLeftWhereTheTargetWantsMore) {
  const std::string image = disk_ / "fine.qcow2";
  create_image(image, "qcow2", 4 * kMiB);
  qemu_io(image, "qcow2", {"write -q -P 5 0 4M"});
  qemu_img({"convert", "-O", "qcow2", image, disk_ / "fine-full.qcow2"});
  qemu_img({"bitmap", "--add", "-g", "512", image, "b0"});
  qemu_io(image, "qcow2", {"write -q -P 6 512 512", "write -q -P 7 1M 1k", "write -q -P 8 3M 64k"});
  const NbdServer server = serve({image});
  const auto result =
      pulled({server.uri("dirty:b0"), disk_ / "fine-inc.qcow2", "--base", "fine-full.qcow2"});
  EXPECT_GT(number(result, "bytes_written"), 512U + 1024U + 64 * kKiB);
  EXPECT_EQ(difference(disk_ / "fine-inc.qcow2", "qcow2", image, "qcow2"), "");
}

TEST_F(PackedPull, IsNotOfferedUnlessAskedFor) {
  const NbdServer server = NbdServer::delta({disk_.image()});
  EXPECT_NE(run({"nbdinfo", "--size", server.uri("packed:dirty:b0")}).status, 0);
  pulled({server.uri("dirty:b0"), disk_.full_raw(), "--apply"});
  expect_equal(disk_.full_raw(), "raw");
}

/// Whatever a guest writes to its disk, it is the server that says what an export is.
TEST_F(PackedPull, IsNotTakenFromAServerThatServesTheDiskUnderEveryName) {
  const std::string forged = disk_ / "forged.raw";
  {
    const NbdServer server = serve({disk_.image()});
    run_ok({"nbdcopy", server.uri("packed:dirty:b0"), forged});
  }
  const NbdServer server = NbdServer::nbdkit(
      "file", {forged, "exportdesc=fixed:changed view: all of it"}, {"--filter=exportname"});
  pulled({server.uri("dirty:b0"), disk_ / "copy.qcow2", "--base", "full.qcow2"});
  EXPECT_EQ(difference(disk_ / "copy.qcow2", "qcow2", forged, "raw"), "");
}

/// The places in a packed export are those of one map; another may have the same length.
TEST_F(PackedPull, GoesOnWithoutWhereTheServerComesBackWithAnotherMap) {
  for (const bool is_packed_again : {true, false}) {
    const std::string image = disk_ / "random.raw";
    const std::string copy = disk_ / "copy.raw";
    const std::string socket = disk_ / "socket";
    run_ok({"dd", "if=/dev/urandom", "of=" + image, "bs=1M", "count=24", "status=none"});
    std::filesystem::remove(copy);
    run_ok({"truncate", "-s", "24M", copy});
    const auto write_map = [&](std::uint64_t changed_at) {
      std::string map = "[";
      for (std::uint64_t mib = 0; mib < 24; ++mib)
        map += fmt::format(R"({}{{"offset":{},"length":{},"type":{}}})", mib == 0 ? "" : ",",
                           mib * kMiB, kMiB, mib >= changed_at && mib < changed_at + 8 ? 0 : 1);
      std::ofstream(disk_ / "map.json") << map << "]";
    };
    const auto start = [&](const std::string& packed) {
      std::filesystem::remove(socket);
      return serve_at(socket, {delta_plugin(), image, "format=raw", "map=" + (disk_ / "map.json"),
                               "packed=" + packed});
    };
    write_map(2);
    Background first = start("on");
    Background client(nbdelta_command(
        {"pull", "--json", "--apply", "--rate", "4M", "nbd+unix:///dirty?socket=" + socket, copy}));
    while (!has_data(copy) && client.running())
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ASSERT_TRUE(client.running()) << client.err();
    first.signal(SIGKILL);
    first.wait(std::chrono::milliseconds(5000));
    write_map(14);
    const Background second = start(is_packed_again ? "on" : "off");
    const auto outcome = client.wait(std::chrono::milliseconds(60'000));
    ASSERT_TRUE(outcome);
    ASSERT_EQ(outcome->status, 0) << outcome->err;
    EXPECT_GE(number(boost::json::parse(outcome->out), "retries"), 1U);
    run_ok({"cmp", "-n", "8M", "-i", "2M", image, copy});
    run_ok({"cmp", "-n", "2M", copy, "/dev/zero"});
    run_ok({"cmp", "-n", "14M", "-i", "10M:0", copy, "/dev/zero"});
  }
}

TEST_F(PackedPull, FromAServerThatEndsWithItsLastClient) {
  const std::string socket = disk_ / "socket";
  Background server =
      serve_at(socket, {"--filter=exitlast", delta_plugin(), disk_.image(), "packed=on"});
  pulled({"nbd+unix:///dirty:b0?socket=" + socket, disk_.full_raw(), "--apply"});
  EXPECT_TRUE(server.wait(std::chrono::milliseconds(5000)));
  expect_equal(disk_.full_raw(), "raw");
}

TEST_F(PackedPull, FromAServerThatTakesOneClient) {
  const NbdServer server = serve({disk_.image(), "limit=1"}, {"--filter=limit"});
  pulled({server.uri("dirty:b0"), disk_.full_raw(), "--apply", "--connections", "1", "--retries",
          "0"});
  expect_equal(disk_.full_raw(), "raw");
}

TEST_F(PackedPull, OfPartOfTheDiskBehindAFilter) {
  const NbdServer server = serve({disk_.image(), "offset=1M", "range=2M"}, {"--filter=offset"});
  const std::string part = disk_ / "part.raw";
  qemu_img({"convert", "-O", "raw", disk_.image(), disk_ / "now.raw"});
  const auto bytes_of = [&](const std::string& file, std::uint64_t offset) {
    std::vector<std::byte> bytes(2 * kMiB);
    (void)File::open(file, O_RDONLY).read_at(bytes, offset);
    return bytes;
  };
  run_ok({"dd", "if=" + disk_.full_raw(), "of=" + part, "bs=1M", "skip=1", "count=2"});
  pulled({server.uri("dirty:b0"), part, "--apply"});
  EXPECT_TRUE(bytes_of(part, 0) == bytes_of(disk_ / "now.raw", kMiB));
}

TEST_F(PackedPull, MapIsWhatNbdinfoSays) {
  const NbdServer server = serve({disk_.image()});
  const auto map =
      boost::json::parse(run_ok(nbdelta_command({"map", "--json", server.uri("dirty:b0")})));
  std::vector<NbdExtent> ours;
  for (const auto& extent : map.as_array())
    ours.push_back({extent.at("offset").to_number<std::uint64_t>(),
                    extent.at("length").to_number<std::uint64_t>(),
                    extent.at("type").to_number<std::uint64_t>()});
  EXPECT_EQ(ours, nbdinfo_map(server.uri("dirty:b0")));
}

}  // namespace
}  // namespace nbdelta::testing
