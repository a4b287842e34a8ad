#include "tests/guest/guest.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#include "tests/guest/check.hpp"
#include "tests/support/line_socket.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using std::chrono::seconds;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr std::uint64_t kDiskSize = 64 * 1024 * 1024;

/// Just enough of the agent's protocol.
class RawAgent {
 public:
  explicit RawAgent(const std::string& path) : socket_(path) {}

  /// A byte 0xFF of ours ends whatever was sent before, to which an error may be the answer; ours
  /// comes behind one too.
  void synchronise(std::int64_t id) {
    socket_.send(fmt::format(
        "\xff{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{}}}}}\n", id));
    std::string line = socket_.read_line(seconds(30));
    while (!line.starts_with('\xff'))
      line = socket_.read_line(seconds(30));
    EXPECT_EQ(line, fmt::format("\xff{{\"return\": {}}}", id));
  }

  boost::json::value call(const std::string& command, const std::string& arguments = "{}") {
    socket_.send(fmt::format("{{\"execute\":\"{}\",\"arguments\":{}}}\n", command, arguments));
    const boost::json::value answer = boost::json::parse(socket_.read_line(seconds(30)));
    return answer.at("return");
  }

 private:
  LineSocket socket_;
};

/// Just enough of QMP: commands without arguments, events passed over.
class RawQmp {
 public:
  explicit RawQmp(const std::string& path) : socket_(path) { call("qmp_capabilities"); }

  void call(const std::string& command) {
    socket_.send(fmt::format("{{\"execute\":\"{}\"}}\n", command));
    while (!socket_.read_line(seconds(30)).starts_with(R"({"return")"))
      continue;
  }

 private:
  LineSocket socket_;
};

class GuestTest : public ::testing::Test {
 protected:
  GuestTest() {
    for (const GuestDisk& disk : disks_)
      make_disk(disk, kDiskSize);
  }

  ~GuestTest() override {
    if (HasFailure() && guest_)
      std::cerr << guest_->console();
  }

  Guest& start(const GuestOptions& options = {}) {
    guest_ = std::make_unique<Guest>(folder_.path(), disks_, options);
    guest_->wait_until_ready();
    return *guest_;
  }

  std::string raw(const GuestDisk& disk) const {
    std::string path = disk.path + ".raw";
    qemu_img({"convert", "-U", "-f", disk.format, "-O", "raw", disk.path, path});
    return path;
  }

  TempFolder folder_;
  std::vector<GuestDisk> disks_{
      {folder_ / "files.qcow2", "qcow2", GuestDisk::Use::file_system, GuestDisk::Attach::drive,
       "files"},
      {folder_ / "blocks.qcow2", "qcow2", GuestDisk::Use::blocks, GuestDisk::Attach::blockdev,
       "blocks"},
      {folder_ / "more.raw", "raw", GuestDisk::Use::blocks, GuestDisk::Attach::blockdev, "more"}};

 private:
  std::unique_ptr<Guest> guest_;
};

TEST_F(GuestTest, SurvivesACrashOfQemu) {
  Guest& guest = start();
  RawAgent agent(guest.agent());
  agent.synchronise(4711);
  agent.call("guest-ping");
  EXPECT_EQ(agent.call("guest-fsfreeze-freeze"), 1);
  EXPECT_EQ(agent.call("guest-fsfreeze-status"), "frozen");
  EXPECT_EQ(agent.call("guest-fsfreeze-thaw"), 1);
  const auto exec = agent.call("guest-exec", R"({"path":"sync"})");
  boost::json::value status;
  do {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    status = agent.call("guest-exec-status", boost::json::serialize(exec));
  } while (!status.at("exited").as_bool());
  EXPECT_EQ(status.at("exitcode"), 0) << status;

  std::this_thread::sleep_for(seconds(2));
  guest.kill();
  EXPECT_FALSE(guest.running());

  const auto operations = guest.operations();
  EXPECT_GT(operations.size(), 100U);
  EXPECT_GT(longest_stall(guest.operation_log()).count(), 0);
  bool kinds[3] = {};
  for (const LoggedOperation& operation : operations) {
    EXPECT_FALSE(operation.failed) << operation.sequence;
    kinds[static_cast<int>(operation.kind)] = true;
  }
  EXPECT_TRUE(kinds[0] && kinds[1] && kinds[2]) << "of a kind there is no operation";
  EXPECT_THAT(check_nothing_lost({raw(disks_[1]), raw(disks_[2])}, operations), IsEmpty());
  EXPECT_THAT(check_file_system(raw(disks_[0])), IsEmpty());
}

TEST_F(GuestTest, IsJudgedByInstants) {
  disks_[1].format = "raw";  // a qcow2 file cannot be read while QEMU writes to it
  make_disk(disks_[1], kDiskSize);
  Guest& guest = start();
  RawQmp qmp(guest.qmp());
  std::this_thread::sleep_for(seconds(1));
  const auto copies = [&](seconds between) {
    const std::string first = raw(disks_[1]);
    std::this_thread::sleep_for(between);
    return std::vector<std::string>{first, raw(disks_[2])};
  };

  // A machine that stands still is of one instant, which lies between two looks at the log.
  const auto before = guest.operations();
  qmp.call("stop");
  const auto after = guest.operations();
  const auto good = copies(seconds(0));
  qmp.call("cont");
  std::this_thread::sleep_for(seconds(1));
  const auto later = guest.operations();
  EXPECT_GT(later.size(), after.size());
  EXPECT_THAT(check_instant(good, later, first_not_done(before), last_started(after)), IsEmpty());
  EXPECT_THAT(check_nothing_lost(good, later), Not(IsEmpty()));

  // Two disks copied one after the other while it runs are of two.
  const auto bad = copies(seconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const auto last = guest.operations();
  EXPECT_THAT(check_instant(bad, last, first_not_done(later), last_started(last)), Not(IsEmpty()));
}

TEST_F(GuestTest, DoesAsItIsTold) {
  GuestOptions options;
  options.agent = false;
  options.start_paused = true;
  options.rate = 0;
  Guest& guest = start(options);
  EXPECT_THAT(guest.operations(), IsEmpty());
  guest.control("start");
  std::this_thread::sleep_for(seconds(1));
  guest.control("stop");
  const auto stopped = guest.operations();
  EXPECT_GT(stopped.size(), 0U);
  EXPECT_EQ(first_not_done(stopped), last_started(stopped) + 1);

  // While it is stopped nothing is written, and afterwards as slowly as it is told.
  guest.control("rate 20");
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_EQ(guest.operations().size(), stopped.size());
  guest.control("start");
  std::this_thread::sleep_for(seconds(1));
  EXPECT_LE(guest.operations().size(), stopped.size() + 100);
  EXPECT_ANY_THROW(guest.control("dance"));

  guest.shut_down();
  EXPECT_FALSE(guest.running());
  const auto operations = guest.operations();
  EXPECT_GT(operations.size(), stopped.size()) << guest.console();
  const std::vector<std::string> blocks{raw(disks_[1]), raw(disks_[2])};
  EXPECT_THAT(
      check_instant(blocks, operations, first_not_done(operations), last_started(operations)),
      IsEmpty());
  EXPECT_THAT(check_file_system(raw(disks_[0])), IsEmpty());
}

}  // namespace
}  // namespace nbdelta::testing
