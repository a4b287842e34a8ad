#include <fmt/format.h>
#include <signal.h>

#include <chrono>
#include <functional>
#include <iostream>
#include <thread>

#include "tests/client/session/session_test.hpp"

/// kill -9 of everything, at points spread over a whole session.
///
/// A test's writes go through QEMU's monitor, which waits for each of them, and the whole of QEMU
/// with it: one that a commit holds back would keep the commit from being ended. So they come when
/// the guard of a commit has done its work. A guest's writes wait by themselves.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
namespace json = boost::json;
using Milliseconds = std::chrono::duration<double, std::milli>;

constexpr int kPoints = 16;

class Crash : public ::testing::TestWithParam<const char*> {
 protected:
  Crash() {
    machine_.write_at_random(random_, 20);
    backup();
    machine_.write_at_random(random_, 20);
    const auto start = std::chrono::steady_clock::now();
    backup();
    session_ = std::chrono::steady_clock::now() - start;
  }

  void backup() { last_ = points_.backup({"--tracking", GetParam()}); }

  /// Starts a backup and lets `kill` loose on it after a share of the time that one takes.
  Outcome disturbed(int point, const std::function<void(pid_t nbdelta)>& kill) {
    machine_.write_at_random(random_, 10);
    Background nbdelta(points_.command("backup", {"--quiesce", "no", "--tracking", GetParam()}));
    const double share = static_cast<double>(random_.below(1000)) / 1000;
    const Milliseconds delay = session_ * (point + share) / kPoints;
    std::this_thread::sleep_for(delay);
    nbdelta.signal(SIGSTOP);  // so that the phase is that of the crash
    phase_ = points_.phase();
    guards_ = children_of(nbdelta.pid(), "nbdelta-commit");
    kill(nbdelta.pid());
    nbdelta.signal(SIGCONT);
    const auto outcome = nbdelta.wait(kDefaultTimeout);
    if (!outcome)
      throw std::runtime_error("nbdelta does not end");
    std::cout << fmt::format("  {:6.1f} ms  {:<11}", delay.count(), phase_);
    return *outcome;
  }

  void wait_for_guards() {
    const auto deadline = std::chrono::steady_clock::now() + kDefaultTimeout;
    for (const pid_t guard : guards_)
      while (!text_of_file(fmt::format("/proc/{}/cmdline", guard)).empty()) {
        ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "a commit's guard does not end";
        std::this_thread::sleep_for(1ms);
      }
  }

  /// What was published holds what the disks held when the backup began: nothing was written since.
  void take_published_points() {
    for (const auto& entry : fs::directory_iterator(points_.vm_folder()))
      if (entry.is_directory() && fs::exists(entry.path() / "manifest.json") &&
          seen_.insert(entry.path().filename()).second)
        points_.remember(entry.path().filename());
  }

  std::string recover(const Command& more) {
    Command words = nbdelta_command({"recover", "--vm", "vm", "--to", points_.repository()});
    words.insert(words.end(), more.begin(), more.end());
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    std::string text = outcome.err;
    std::replace(text.begin(), text.end(), '\n', ';');
    return text;
  }

  void expect_clean() {
    if (std::string(GetParam()) == "bitmap") {
      EXPECT_THAT(machine_.leftovers(), IsEmpty());
    }
    EXPECT_EQ(points_.phase(), "no journal");
  }

  void next_backup_is_incremental() {
    wait_for_guards();
    machine_.write_at_random(random_, 5);
    backup();
    expect_incremental();
  }

  void expect_incremental() {
    for (const json::value& disk : last_.at("disks").as_array())
      EXPECT_EQ(disk.at("type").as_string(), "incremental") << disk;
    expect_clean();
    seen_.insert(std::string(last_.at("point").as_string()));
  }

  /// A qcow2 image's bitmap is sound where an overlay lay over it; a raw image's died with QEMU.
  void expect_types_after_qemu_died() const {
    if (std::string(GetParam()) == "overlay") {
      EXPECT_EQ(type_of(last_, 0), "incremental") << last_;
      EXPECT_EQ(type_of(last_, 1), "incremental") << last_;
      return;
    }
    EXPECT_EQ(type_of(last_, 1), "full") << last_;
    if (phase_ == "export") {
      EXPECT_EQ(type_of(last_, 0), "incremental") << last_;
    } else if (type_of(last_, 0) == "full") {
      EXPECT_THAT(std::string(last_.at("disks").at(0).at("reason").as_string()),
                  ::testing::AnyOf(HasSubstr("is inconsistent"), HasSubstr("is missing")));
    }
  }

  Random random_ = Random::from_environment();
  Machine machine_{{{.name = "vda"}, {.name = "vdb", .format = "raw"}}};
  Points points_{machine_};
  Milliseconds session_{};
  json::value last_;
  std::string phase_;
  std::vector<pid_t> guards_;  // of a commit
  std::set<std::string> seen_{"0001-full", "0002-incremental"};
};

TEST_P(Crash, OfNbdelta) {
  for (int point = 0; point < kPoints; ++point) {
    disturbed(point, [](pid_t nbdelta) { ::kill(nbdelta, SIGKILL); });
    take_published_points();
    if (point % 2 == 0) {
      wait_for_guards();
      machine_.write_at_random(random_, 5);
    }
    std::cout << recover({"--qmp", machine_.qmp()}) << "\n";
    expect_clean();
    EXPECT_THAT(recover({"--qmp", machine_.qmp()}), HasSubstr("nothing was left to do"));
    next_backup_is_incremental();
  }
  points_.check();
}

/// The next backup alone must do, without anybody running recover.
TEST_P(Crash, OfNbdeltaIsPutRightByTheNextBackup) {
  for (int point = 0; point < kPoints; ++point) {
    disturbed(point, [](pid_t nbdelta) { ::kill(nbdelta, SIGKILL); });
    std::cout << "\n";
    take_published_points();
    if (point % 2 == 0) {
      next_backup_is_incremental();
    } else {  // at once
      backup();
      expect_incremental();
    }
  }
  points_.check();
}

TEST_P(Crash, OfNbdkit) {
  for (int point = 0; point < kPoints; ++point) {
    std::size_t killed = 0;
    const Outcome outcome = disturbed(point, [&](pid_t nbdelta) {
      for (const pid_t nbdkit : children_of(nbdelta, "nbdkit")) {
        ::kill(nbdkit, SIGKILL);
        ++killed;
      }
    });
    std::cout << fmt::format("killed {}, status {}\n", killed, outcome.status);
    take_published_points();
    if (outcome.status == 0)
      expect_clean();
    next_backup_is_incremental();
  }
  points_.check();
}

/// A user's Ctrl-C is no crash: nothing is left, and no recovery is needed.
TEST_P(Crash, Interruption) {
  for (int point = 0; point < kPoints; ++point) {
    const Outcome outcome = disturbed(point, [](pid_t nbdelta) { ::kill(nbdelta, SIGINT); });
    std::cout << fmt::format("status {}\n", outcome.status);
    EXPECT_TRUE(outcome.status == 0 || outcome.status == 130) << outcome.err;
    take_published_points();
    expect_clean();
    next_backup_is_incremental();
  }
  points_.check();
}

/// At the worst instant of the commit below the guest's overlay: its header names the base already.
/// What QEMU has not flushed to the base before would be lost.
class CrashInLowerCommit : public ::testing::TestWithParam<const char*> {
 protected:
  const std::string format_ = GetParam();
};

TEST_P(CrashInLowerCommit, LosesNothing) {
  Machine machine({{.name = "vda", .format = format_}});
  Points points(machine);
  const MachineDisk& disk = machine.disks().front();
  const Command by_overlay{"--tracking", "overlay"};
  points.backup(by_overlay);
  machine.write(disk, "write -P 7 1M 3M");
  points.backup(by_overlay);
  machine.write(disk, "write -P 9 2M 64k");
  machine.write(disk, "write -P 8 20M 3M");

  machine.quit();
  machine.start({"LD_PRELOAD=" NBDELTA_KILL_ON_BACKING_NAME,
                 "NBDELTA_KILL_ON_BACKING_NAME=" + machine.image(disk)});
  const Outcome outcome =
      run(points.command("backup", {"--quiesce", "no", "--tracking", "overlay"}));
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("restore point 0003-incremental is complete"));
  points.remember("0003-incremental");
  machine.kill();

  machine.start();
  machine.write(disk, "write -P 10 2M 512");  // the rest of its cluster comes from below
  machine.write(disk, "write -P 11 21M 512");
  points.backup(by_overlay);
  points.check();
  machine.quit();
  EXPECT_EQ(machine.difference_from_model(disk), "");
  EXPECT_EQ(machine.leftovers().size(), 3U) << "the current overlay, its mark, and its name";
}

/// nbdelta died when the job had ended, and the overlay's header still named what was committed.
TEST(CrashAfterLowerCommit, TheHeaderIsPutRight) {
  Machine machine({{.name = "vda"}});
  Points points(machine);
  const MachineDisk& disk = machine.disks().front();
  run_ok(points.command("begin", {"--quiesce", "no", "--tracking", "overlay"}));
  run_ok(points.command("end", {"--success"}));
  const std::string lower = machine.current(disk);
  machine.write(disk, "write -P 7 1M 3M");
  run_ok(points.command("begin", {"--quiesce", "no", "--tracking", "overlay"}));
  machine.write(disk, "write -P 8 2M 64k");
  const json::value nodes = machine.command("query-named-block-nodes", {{"flat", true}});
  json::object commit{{"device", "/machine/peripheral/vda/virtio-backend"},
                      {"job-id", "test"},
                      {"backing-file", lower},
                      {"auto-dismiss", true}};
  for (const json::value& node : nodes.as_array()) {
    const json::object& image = node.at("image").as_object();
    const std::string name(node.at("node-name").as_string());
    if (image.at("format") != "qcow2")
      continue;
    if (!image.contains("backing-filename"))
      commit["base-node"] = name;
    else if (image.at("filename").as_string() == lower)
      commit["top-node"] = name;
    else
      commit["device"] = name;
  }
  kill_servers_of(machine.folder());
  const json::value started = machine.command("block-commit", commit);
  ASSERT_TRUE(started.is_object() && started.as_object().empty()) << started;
  while (!machine.command("query-jobs").as_array().empty())
    std::this_thread::sleep_for(10ms);

  const Outcome outcome = run(points.command("end", {"--failure"}));
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("has the backing file"));
  EXPECT_FALSE(fs::exists(lower)) << outcome.out << outcome.err;
  machine.quit();
  EXPECT_EQ(machine.difference_from_model(disk), "");
}

INSTANTIATE_TEST_SUITE_P(Kill9, CrashInLowerCommit, ::testing::Values("qcow2", "raw"),
                         [](const auto& row) { return std::string(row.param); });

TEST_P(Crash, OfQemu) {
  for (int point = 0; point < kPoints; ++point) {
    const Outcome outcome = disturbed(point, [&](pid_t nbdelta) {
      if (point % 2 == 0)
        ::kill(nbdelta, SIGKILL);
      machine_.kill();
    });
    take_published_points();
    Command offline;
    if (std::string(GetParam()) == "bitmap") {
      for (const MachineDisk& disk : machine_.disks())
        offline.insert(offline.end(), {"--offline", machine_.image(disk)});
      std::cout << fmt::format("status {}; ", outcome.status) << recover(offline) << "\n";
      EXPECT_THAT(recover(offline), HasSubstr("nothing was left to do"));
      EXPECT_THAT(machine_.leftovers(), IsEmpty());
    } else {
      std::cout << fmt::format("status {}\n", outcome.status);
    }
    for (const MachineDisk& disk : machine_.disks())
      EXPECT_EQ(machine_.difference_from_model(disk), "") << disk.name;
    machine_.start();
    machine_.write_at_random(random_, 5);
    backup();
    expect_clean();
    seen_.insert(std::string(last_.at("point").as_string()));
    expect_types_after_qemu_died();
  }
  points_.check();
}

INSTANTIATE_TEST_SUITE_P(Kill9, Crash, ::testing::Values("bitmap", "overlay"),
                         [](const auto& row) { return std::string(row.param); });

}  // namespace
}  // namespace nbdelta::testing
