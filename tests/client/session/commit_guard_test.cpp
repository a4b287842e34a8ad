#include <signal.h>

#include <chrono>
#include <iostream>
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

  /// A commit with somebody killed before the command of this index, from job-complete to the
  /// removal of the overlay's node. Returns whether there is one.
  bool commit(Victim victim, int index) {
    machine_.write_at_random(random_, 5);
    run_ok(points_.command("begin", {"--quiesce", "no"}));
    machine_.write_at_random(random_, 10);  // to the overlays
    Nth is_it(index);
    bool begun = false;
    bool ended = false;
    tap_.emplace(machine_.folder() + "/tap", machine_.qmp(), [&](const std::string& line) {
      const json::string name = json::parse(line).at("execute").as_string();
      begun |= name == "job-complete";
      const bool counts = begun && !ended && !is_it.was_there();
      ended |= name == "blockdev-del";
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

  std::string status_of_job() {
    const json::value jobs = machine_.command("query-jobs");
    return jobs.as_array().empty() ? "" : std::string(jobs.at(0).at("status").as_string());
  }

  void expect_writes_go_on() {
    for (int i = 0; i < 500 && status_of_job() == "pending"; ++i)
      std::this_thread::sleep_for(10ms);
    EXPECT_NE(status_of_job(), "pending");
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

TEST_P(CommitGuard, RecoverDoesItWhereTheGuardDiedToo) {
  int held = 0;
  points_.backup();
  for (int i = 0; commit(Victim::nbdelta_and_guard, i); ++i) {
    ASSERT_LT(i, kMostCommands);
    tap_.reset();
    if (held_) {
      EXPECT_EQ(status_of_job(), "pending") << "the guard lives";
    }
    held += held_ ? 1 : 0;
    run_ok(points_.command("recover"));
    EXPECT_NE(status_of_job(), "pending");
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    expect_all_is_well();
  }
  EXPECT_GE(held, 1);
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

INSTANTIATE_TEST_SUITE_P(Held, CommitGuard, ::testing::Values("qcow2", "raw"),
                         [](const auto& row) { return std::string(row.param); });

}  // namespace
}  // namespace nbdelta::testing
