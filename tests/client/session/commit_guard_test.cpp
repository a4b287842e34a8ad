#include <fmt/format.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <optional>
#include <thread>

#include "tests/client/session/watched.hpp"

/// A commit's last step holds the guest's writes back: whoever dies at any command of it, they go
/// on soon, and it is plain whether overlay or base is right.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;

constexpr int kMostCommands = 40;

class CommitGuard : public ::testing::TestWithParam<const char*> {
 protected:
  enum class Victim : std::uint8_t { nbdelta, nbdelta_and_guard, qemu };

  void kill(Victim victim, QmpTap& tap) {
    if (victim == Victim::qemu) {
      machine_.kill();
      return;
    }
    if (victim == Victim::nbdelta_and_guard)
      for (const pid_t guard : children_of(tap.client(), "nbdelta-commit"))
        ::kill(guard, SIGKILL);
    tap.kill_client();
  }

  /// The removal of the overlay's node.
  static bool is_end(std::string_view name, const std::string& line) {
    if (name != "blockdev-del")
      return false;
    const json::value command = json::parse(line);
    return !command.at("arguments").at("node-name").as_string().ends_with("-s");
  }

  /// A commit with somebody killed before the command of this index, from stop or job-complete to
  /// the removal of the overlay's node. Returns whether there is one.
  bool commit(Victim victim, int index) {
    machine_.write_at_random(random_, 5);
    run_ok(points_.command("begin", {"--quiesce", "no"}));
    machine_.write_at_random(random_, 10);  // to the overlays
    Nth is_it(index);
    bool begun = false;
    bool ended = false;
    tap_.emplace(machine_.folder() + "/tap", machine_.qmp(), [&](const std::string& line) {
      const json::string name = json::parse(line).at("execute").as_string();
      begun |= name == "stop" || name == "job-complete";
      const bool counts = begun && !ended && !is_it.was_there();
      ended |= is_end(name, line);
      if (!counts || !is_it())
        return;
      held_ = status_of_job() == "pending";
      std::cout << "  before " << name << (held_ ? ", the guest's writes are held back" : "")
                << "\n";
      kill(victim, *tap_);
    });
    points_.connect_to(tap_->path());
    run(points_.command("end", {"--failure"}));
    points_.connect_to(machine_.qmp());
    return is_it.was_there();
  }

  /// A commit in which nbdelta is stopped at the command of this index, from stop or job-complete
  /// to job-finalize, which it has not sent yet. Returns whether there is one.
  bool commit_stopped(int index) {
    machine_.write_at_random(random_, 5);
    run_ok(points_.command("begin", {"--quiesce", "no"}));
    machine_.write_at_random(random_, 10);  // to the overlays
    Nth is_it(index);
    bool begun = false;
    bool ended = false;
    bool may_wait = true;
    bool completed = false;
    bool before_job_complete = false;
    std::atomic<bool> stopped = false;
    tap_.emplace(machine_.folder() + "/tap", machine_.qmp(), [&](const std::string& line) {
      const json::string name = json::parse(line).at("execute").as_string();
      begun |= name == "stop" || name == "job-complete";
      completed |= name == "job-complete";
      const bool counts = begun && !ended;
      ended |= name == "job-finalize";
      if (!counts || !is_it())
        return;
      expect_guards_have_no_output(tap_->client());
      tap_->stop_client();
      if (name == "job-finalize")
        tap_->drop();
      std::cout << "  stopped at " << name << "\n";
      // The test's writes come although the guest has been stopped.
      may_wait = name != "job-finalize" || std::string(GetParam()) != "raw";
      before_job_complete = !completed;
      stopped = true;
    });
    points_.connect_to(tap_->path());
    Background nbdelta(points_.command("end", {"--failure"}));
    points_.connect_to(machine_.qmp());
    while (!stopped && nbdelta.running())
      std::this_thread::sleep_for(5ms);
    if (stopped && before_job_complete)
      expect_the_guest_goes_on();
    else if (stopped)
      expect_a_write_goes_on(may_wait);
    const std::optional<Outcome> outcome = nbdelta.wait(kDefaultTimeout);
    EXPECT_TRUE(outcome);
    if (outcome && stopped) {
      EXPECT_EQ(outcome->status, 128 + SIGKILL) << outcome->err;
    }
    return stopped;
  }

  /// A commit in which somebody else sends QEMU this before the command of this index, between stop
  /// and job-finalize. Returns how it ended; nothing where there is no such command.
  std::optional<Outcome> commit_disturbed(const char* by, int index) {
    machine_.write_at_random(random_, 5);
    run_ok(points_.command("begin", {"--quiesce", "no"}));
    machine_.write_at_random(random_, 10);  // to the overlays
    Nth is_it(index);
    bool stopped = false;
    bool ended = false;
    tap_.emplace(machine_.folder() + "/tap", machine_.qmp(), [&](const std::string& line) {
      const json::string name = json::parse(line).at("execute").as_string();
      const bool counts = stopped && !ended;
      stopped |= name == "stop";
      ended |= name == "job-finalize";
      if (!counts || !is_it())
        return;
      machine_.command(by);
      disturbed_before_ = name;
      std::cout << "  " << by << " before " << disturbed_before_ << "\n";
    });
    points_.connect_to(tap_->path());
    Outcome outcome = run(points_.command("end", {"--failure"}));
    points_.connect_to(machine_.qmp());
    tap_.reset();
    return is_it.was_there() ? std::optional(std::move(outcome)) : std::nullopt;
  }

  /// Who reads what nbdelta prints would wait for them.
  static void expect_guards_have_no_output(pid_t nbdelta) {
    const std::vector<pid_t> guards = children_of(nbdelta, "nbdelta-commit");
    EXPECT_EQ(guards.size(), 1U);
    for (const pid_t guard : guards)
      for (const char* output : {"1", "2"})
        EXPECT_EQ(std::filesystem::read_symlink(fmt::format("/proc/{}/fd/{}", guard, output)),
                  "/dev/null");
  }

  /// One that the guest begins when the job is pending is held back, for a while only.
  void expect_a_write_goes_on(bool may_wait) {
    const MachineDisk& disk = machine_.disks().front();
    const auto start = std::chrono::steady_clock::now();
    const auto passed = [&] { return std::chrono::steady_clock::now() - start; };
    while (status_of_job() != "pending" && passed() < 5s)
      std::this_thread::sleep_for(10ms);
    EXPECT_EQ(status_of_job(), "pending");
    EXPECT_EQ(guest_runs(), !must_stop()) << "while the job is pending";
    const std::int64_t before = machine_.acknowledged_writes(disk);
    while (!may_wait && status_of_job() == "pending" && passed() < 60s)
      std::this_thread::sleep_for(10ms);
    machine_.begin_write(disk, "write -P 77 1M 64k");
    if (may_wait) {
      std::this_thread::sleep_for(1s);
      EXPECT_EQ(machine_.acknowledged_writes(disk), before) << "the guest's writes do not wait";
    }
    while (machine_.acknowledged_writes(disk) == before && passed() < 60s)
      std::this_thread::sleep_for(10ms);
    std::cout << "  acknowledged after " << std::chrono::duration<double>(passed()).count()
              << " s\n";
    EXPECT_LT(passed(), 16s);
    EXPECT_GT(machine_.acknowledged_writes(disk), before);
    expect_the_guest_goes_on();
  }

  void expect_the_guest_goes_on() {
    const auto start = std::chrono::steady_clock::now();
    while (!guest_runs() && std::chrono::steady_clock::now() - start < 40s)
      std::this_thread::sleep_for(10ms);
    EXPECT_TRUE(guest_runs());
  }

  bool guest_runs() { return machine_.command("query-status").at("running").as_bool(); }
  /// See client::backup::must_stop_guest().
  bool must_stop() {
    const json::value version = machine_.command("query-version").at("qemu");
    return version.at("major").as_int64() < 10 && std::string(GetParam()) == "raw";
  }

  std::string status_of_job() {
    const json::value jobs = machine_.command("query-jobs");
    return jobs.as_array().empty() ? "" : std::string(jobs.at(0).at("status").as_string());
  }

  void expect_writes_go_on() {
    for (int i = 0; i < 500 && (status_of_job() == "pending" || !guest_runs()); ++i)
      std::this_thread::sleep_for(10ms);
    EXPECT_NE(status_of_job(), "pending");
    EXPECT_TRUE(guest_runs());
  }

  void expect_all_is_well() {
    machine_.write_at_random(random_, 5);
    points_.backup();
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    points_.check();
  }

  Random random_ = Random::from_environment();
  Machine machine_{{{.name = "vda", .format = GetParam()}}};
  Points points_{machine_};
  std::optional<QmpTap> tap_;
  std::string disturbed_before_;  // the command
  bool held_ = false;
};

TEST_P(CommitGuard, LetsTheGuestGoOnWhenNbdeltaDies) {
  int held = 0;
  points_.backup();
  for (int i = 0; commit(Victim::nbdelta, i); ++i) {
    ASSERT_LT(i, kMostCommands);
    held += held_ ? 1 : 0;
    expect_writes_go_on();
    machine_.write_at_random(random_, 5);
    tap_.reset();
    run_ok(points_.command("recover"));
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    expect_all_is_well();
  }
  EXPECT_GE(held, 1);
  tap_.reset();
  machine_.quit();
  EXPECT_EQ(machine_.difference_from_model(machine_.disks().front()), "");
}

TEST_P(CommitGuard, LetsTheGuestGoOnWhenNbdeltaIsStopped) {
  points_.backup();
  int stops = 0;
  for (; commit_stopped(stops); ++stops) {
    ASSERT_LT(stops, kMostCommands);
    tap_.reset();
    run_ok(points_.command("recover"));
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    expect_all_is_well();
  }
  EXPECT_GE(stops, 3);
  tap_.reset();
  machine_.quit();
  EXPECT_EQ(machine_.difference_from_model(machine_.disks().front()), "");
}

TEST_P(CommitGuard, RecoverDoesItWhereTheGuardDiedToo) {
  int held = 0;
  int stood = 0;
  points_.backup();
  for (int i = 0; commit(Victim::nbdelta_and_guard, i); ++i) {
    ASSERT_LT(i, kMostCommands);
    tap_.reset();
    if (held_) {
      EXPECT_EQ(status_of_job(), "pending") << "the guard lives";
    }
    held += held_ ? 1 : 0;
    stood += guest_runs() ? 0 : 1;
    run_ok(points_.command("recover"));
    EXPECT_NE(status_of_job(), "pending");
    EXPECT_TRUE(guest_runs());
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    expect_all_is_well();
  }
  EXPECT_GE(held, 1);
  EXPECT_EQ(stood != 0, must_stop());
  tap_.reset();
  machine_.quit();
  EXPECT_EQ(machine_.difference_from_model(machine_.disks().front()), "");
}

/// Nothing but the image's name is given: what is beside it must say which is right.
TEST_P(CommitGuard, NothingIsOpenWhereQemuDies) {
  for (int i = 0; commit(Victim::qemu, i); ++i) {
    ASSERT_LT(i, kMostCommands);
    tap_.reset();
    const MachineDisk& disk = machine_.disks().front();
    run_ok(nbdelta_command({"recover", "--offline", machine_.image(disk)}));
    EXPECT_EQ(machine_.difference_from_model(disk), "");
    run_ok(nbdelta_command({"check-start", machine_.image(disk)}));
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    machine_.start();
    run_ok(points_.command("recover"));
    expect_all_is_well();
  }
}

/// With a QEMU that wants the guest stopped for it.
class StandingGuest : public CommitGuard {
 protected:
  void SetUp() override {
    if (!must_stop())
      GTEST_SKIP() << "this QEMU does not want it";
  }
};

/// A person at another monitor lets the guest go on that stands for the commit: QEMU would abort if
/// a write of the guest's waited (see must_stop_guest()).
TEST_P(StandingGuest, GivesUpWhereSomebodyElseLetsTheGuestGoOn) {
  points_.backup();
  int refused = 0;
  int commands = 0;
  for (;; ++commands) {
    ASSERT_LT(commands, kMostCommands);
    const std::optional<Outcome> outcome = commit_disturbed("cont", commands);
    if (!outcome)
      break;
    if (outcome->status != 0) {
      EXPECT_THAT(outcome->err, HasSubstr("somebody else has let the guest go on"));
      ++refused;
    } else {
      EXPECT_EQ(disturbed_before_, "job-finalize");  // too late to be seen
    }
    EXPECT_TRUE(guest_runs());
    EXPECT_NE(status_of_job(), "pending");
    run_ok(points_.command("recover"));
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    expect_all_is_well();
  }
  EXPECT_EQ(refused, commands - 1);
  EXPECT_GE(refused, 4);
  machine_.quit();
  EXPECT_EQ(machine_.difference_from_model(machine_.disks().front()), "");
}

/// It is "prelaunch" then, no more "paused".
TEST_P(StandingGuest, LetsAGuestGoOnThatWasResetMeanwhile) {
  points_.backup();
  int commands = 0;
  for (;; ++commands) {
    ASSERT_LT(commands, kMostCommands);
    const std::optional<Outcome> outcome = commit_disturbed("system_reset", commands);
    if (!outcome)
      break;
    EXPECT_EQ(outcome->status, 0) << outcome->err;
    EXPECT_TRUE(guest_runs());
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    expect_all_is_well();
  }
  EXPECT_GE(commands, 3);
  machine_.quit();
  EXPECT_EQ(machine_.difference_from_model(machine_.disks().front()), "");
}

INSTANTIATE_TEST_SUITE_P(Held, CommitGuard, ::testing::Values("qcow2", "raw"),
                         [](const auto& row) { return std::string(row.param); });

INSTANTIATE_TEST_SUITE_P(Held, StandingGuest, ::testing::Values("raw"));

}  // namespace
}  // namespace nbdelta::testing
