#include <fmt/format.h>
#include <signal.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <sstream>
#include <thread>

#include "tests/client/session/session_test.hpp"

/// kill -9 of everything, at points spread over a whole session.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
namespace json = boost::json;
using Milliseconds = std::chrono::duration<double, std::milli>;

constexpr int kPoints = 16;

std::string text_of_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// Children of a process, by what /proc says.
std::vector<pid_t> children_of(pid_t parent, const std::string& name) {
  std::vector<pid_t> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string number = entry.path().filename();
    if (number.find_first_not_of("0123456789") != std::string::npos)
      continue;
    const std::string stat = text_of_file(entry.path() / "stat");
    const std::size_t end = stat.rfind(')');
    if (end == std::string::npos || stat.size() < end + 4)
      continue;
    if (std::atoi(stat.c_str() + end + 4) == parent && stat.find(name) < end)
      found.push_back(std::atoi(number.c_str()));
  }
  return found;
}

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
  std::string phase() const {
    const std::string text = text_of_file(points_.vm_folder() + "/nbdelta-session.json");
    return text.empty() ? "no journal" : std::string(json::parse(text).at("phase").as_string());
  }

  /// Starts a backup and lets `kill` loose on it after a share of the time that one takes.
  Outcome disturbed(int point, const std::function<void(pid_t nbdelta)>& kill) {
    machine_.write_at_random(random_, 10);
    Background nbdelta(points_.command("backup", {"--quiesce", "no", "--tracking", GetParam()}));
    const Milliseconds delay = session_ * (point + 0.5) / kPoints;
    std::this_thread::sleep_for(delay);
    phase_ = phase();
    kill(nbdelta.pid());
    const auto outcome = nbdelta.wait(120s);
    if (!outcome)
      throw std::runtime_error("nbdelta does not end");
    std::cout << fmt::format("  {:6.1f} ms  {:<10}", delay.count(), phase_);
    return *outcome;
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
    EXPECT_EQ(phase(), "no journal");
  }

  void next_backup_is_incremental() {
    machine_.write_at_random(random_, 5);
    backup();
    for (const json::value& disk : last_.at("disks").as_array())
      EXPECT_EQ(disk.at("type").as_string(), "incremental") << disk;
    expect_clean();
    seen_.insert(std::string(last_.at("point").as_string()));
  }

  Random random_ = Random::from_environment();
  Machine machine_{{{.name = "vda"}, {.name = "vdb", .format = "raw"}}};
  Points points_{machine_};
  Milliseconds session_{};
  json::value last_;
  std::string phase_;
  std::set<std::string> seen_{"0001-full", "0002-incremental"};
};

TEST_P(Crash, OfNbdelta) {
  for (int point = 0; point < kPoints; ++point) {
    disturbed(point, [](pid_t nbdelta) { ::kill(nbdelta, SIGKILL); });
    take_published_points();
    machine_.write_at_random(random_, 5);
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
    next_backup_is_incremental();
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
      for (const MachineDisk& disk : machine_.disks())
        EXPECT_EQ(difference(machine_.image(disk), disk.format, machine_.model(disk), "raw"), "");
    } else {
      std::cout << fmt::format("status {}\n", outcome.status);
    }
    machine_.start();
    machine_.write_at_random(random_, 5);
    backup();
    expect_clean();
    seen_.insert(std::string(last_.at("point").as_string()));
    if (std::string(GetParam()) == "bitmap")
      continue;
    for (const json::value& disk : last_.at("disks").as_array())
      EXPECT_EQ(disk.at("type").as_string(), "incremental") << disk;
  }
  points_.check();
}

INSTANTIATE_TEST_SUITE_P(Kill9, Crash, ::testing::Values("bitmap", "overlay"),
                         [](const auto& row) { return std::string(row.param); });

}  // namespace
}  // namespace nbdelta::testing
