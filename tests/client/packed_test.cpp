// Pulls from the packed export beside a changed view, compared with those that do without.

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <optional>
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
  void expect_packed(const boost::json::value& result) const {
    EXPECT_EQ(number(result, "bytes_read"), number(result, "bytes_written"));
    EXPECT_EQ(number(result, "requests"), div_round_up(number(result, "bytes_written"), kMiB));
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

  /// A pull of some 24 MiB into a new file whose server has been killed in the middle.
  class Interrupted {
   public:
    Interrupted(const PackedPull& test, const std::string& name, const Command& image,
                bool packed = true)
        : name_(name), copy_(test.disk_ / "copy.raw"), socket_(test.disk_ / "socket") {
      for (const char* suffix : {"", ".nbdelta-unfinished"})
        std::filesystem::remove(copy_ + suffix);
      run_ok({"truncate", "-s", "24M", copy_});
      Background server = serve(image, packed);
      client_.emplace(nbdelta_command({"pull", "--json", "--apply", "--rate", "4M", uri(), copy_}));
      while (!has_data(copy_) && client_->running())
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      EXPECT_TRUE(client_->running()) << client_->err();
      server.signal(SIGKILL);
      server.wait(std::chrono::milliseconds(5000));
    }

    const std::string& copy() const { return copy_; }
    std::string uri() const { return "nbd+unix:///" + name_ + "?socket=" + socket_; }
    /// In the first one's place.
    Background serve(const Command& image, bool packed) const {
      std::filesystem::remove(socket_);
      Command arguments{delta_plugin(), packed ? "packed=on" : "packed=off"};
      arguments.insert(arguments.end(), image.begin(), image.end());
      return serve_at(socket_, arguments);
    }
    Outcome outcome() {
      const auto outcome = client_->wait(std::chrono::milliseconds(60'000));
      EXPECT_TRUE(outcome);
      return outcome.value_or(Outcome{});
    }

   private:
    std::string name_;
    std::string copy_;
    std::string socket_;
    std::optional<Background> client_;
  };

  Random random_ = Random::from_environment();
  ChangedDisk disk_{random_};
};

TEST_F(PackedPull, IntoEveryKindOfTarget) {
  const NbdServer server = serve({disk_.image()});
  const std::string source = server.uri("dirty:b0");
  const std::string overlay = disk_ / "inc.qcow2";
  expect_packed(pulled({source, overlay, "--base", "full.qcow2"}));
  EXPECT_EQ(check_complaints(overlay), "");
  expect_equal(overlay, "qcow2");

  const std::string applied = disk_ / "applied.raw";
  std::filesystem::copy_file(disk_.full_raw(), applied);
  expect_packed(pulled({source, applied, "--apply"}));
  expect_equal(applied, "raw");

  {
    const NbdServer to = NbdServer::nbdkit("file", {disk_.full_raw()});
    expect_packed(pulled({source, to.uri(), "--apply"}));
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
  expect_packed(pulled({server.uri("layer"), copy, "--apply"}));
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
    run_ok({"dd", "if=/dev/urandom", "of=" + image, "bs=1M", "count=24", "status=none"});
    run_ok({"dd", "if=/dev/zero", "of=" + image, "bs=1M", "seek=8", "count=8", "conv=notrunc",
            "status=none"});
    const auto written = std::filesystem::last_write_time(image);
    Interrupted pull(*this, "layer", {image, "format=raw"});
    run_ok({"fallocate", "--dig-holes", image});
    std::filesystem::last_write_time(image, written);  // the same bytes, with other holes
    const Background server = pull.serve({image, "format=raw"}, is_packed_again);
    const Outcome outcome = pull.outcome();
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_GE(number(boost::json::parse(outcome.out), "retries"), 1U);
    run_ok({"cmp", image, pull.copy()});
  }
}

/// Half of one instant and half of another is no backup.
TEST_F(PackedPull, EndsWhereTheServerComesBackWithAnotherState) {
  const auto overlay = [&](const char* name, int pattern) {
    qemu_img({"create", "-f", "qcow2", "-b", disk_.image(), "-F", "qcow2", disk_ / name});
    qemu_io(disk_ / name, "qcow2", {fmt::format("write -q -P {} 0 24M", pattern)});
    return Command{disk_ / name, "backing=" + std::string(disk_ / "")};
  };
  const Command first = overlay("first.qcow2", 1);
  const Command second = overlay("second.qcow2", 2);
  for (const char* name : {"layer", "image"}) {
    for (const bool packed : {true, false}) {
      Interrupted pull(*this, name, first, packed);
      const Background server = pull.serve(second, packed);
      const Outcome outcome = pull.outcome();
      EXPECT_EQ(outcome.status, 1);
      EXPECT_NE(outcome.err.find("does not belong to that: start again"), std::string::npos)
          << outcome.err;
      // Nor may the second's changes be laid over a part of the first's by a new pull.
      const Command again{"pull", "--apply", pull.uri(), pull.copy()};
      EXPECT_EQ(nbdelta(again).status, name == std::string("layer") ? 3 : 0);  // refused
    }
  }
}

/// A map is a part of the state: it may be half read.
TEST_F(PackedPull, EndsWhereAnotherMapIsGiven) {
  const std::string image = disk_ / "random.raw";
  run_ok({"dd", "if=/dev/urandom", "of=" + image, "bs=1M", "count=24", "status=none"});
  const auto map = [&](const char* name, std::uint64_t changed_at) {
    std::ofstream(disk_ / name) << fmt::format(
        R"([{{"offset":0,"length":{0},"type":1}},{{"offset":{0},"length":{1},"type":0}}])",
        changed_at * kMiB, (24 - changed_at) * kMiB);
    return Command{image, "format=raw", "map=" + (disk_ / name)};
  };
  Interrupted pull(*this, "dirty", map("first.json", 2));
  const Background server = pull.serve(map("second.json", 3), true);
  const Outcome outcome = pull.outcome();
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("start again"), std::string::npos) << outcome.err;
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
