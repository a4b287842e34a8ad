#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "tests/client/session/held_backup.hpp"
#include "tests/client/session/watched.hpp"

/// Nothing that the guest writes is missing anywhere, whenever it writes it and whatever dies.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
namespace json = boost::json;

const Command kPlain{"--quiesce", "no"};

/// Such a session has no restore point: its copy is the caller's matter.
json::value begin(const Points& points) {
  return json::parse(run_ok(points.command("begin", {"--quiesce", "no", "--json"})));
}
void end(const Points& points, const Command& how) {
  run_ok(points.command("end", how));
}

/// QEMU carries a transaction out action by action, and iothreads go on until the first snapshot
/// stops them: what is written between two bitmap actions before that is in neither bitmap.
TEST(Switch, TakesEverySnapshotBeforeItTouchesABitmap) {
  Machine machine({{.name = "vda"}, {.name = "vdb", .format = "raw"}});
  Points points(machine);
  points.backup();
  std::vector<std::string> types;
  const Outcome outcome =
      watched(machine, points, "backup", kPlain, [&](QmpTap&, const json::object& command) {
        if (command.at("execute") != "transaction" || !types.empty())
          return;
        for (const json::value& action : command.at("arguments").at("actions").as_array())
          types.emplace_back(action.at("type").as_string());
      });
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  const std::vector<std::string> expected{"blockdev-snapshot",          "blockdev-snapshot",
                                          "block-dirty-bitmap-disable", "block-dirty-bitmap-add",
                                          "block-dirty-bitmap-disable", "block-dirty-bitmap-add"};
  EXPECT_EQ(types, expected);
}

/// The guest is back on its base, and writes, while bitmaps are put right. Not between job-complete
/// and job-finalize: QEMU may hold its writes back there, and this machine would wait for them.
TEST(FailedSession, WritesBeforeAnyOfItsCommandsAreInTheNextIncremental) {
  Machine machine({{.name = "vda"}});
  Points points(machine);
  const MachineDisk& disk = machine.disks().front();
  std::string previous;
  const auto copy = [&](int number) {
    const std::string file = machine.folder() + fmt::format("/copy-{}.qcow2", number);
    const std::string uri(begin(points).at("disks").at(0).at("uri").as_string());
    Command words{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"};
    if (!previous.empty())
      words.insert(words.end(), {"-B", previous, "-F", "qcow2"});
    words.insert(words.end(), {uri, file});
    run_ok(words);
    end(points, {"--success"});
    previous = file;
  };
  copy(0);
  bool was_there = true;
  for (int i = 0; was_there; ++i) {
    begin(points);
    Nth nth(i);
    std::string name;
    std::string last;
    bool writes_wait = false;
    const Outcome failed =
        watched(machine, points, "end", {"--failure"}, [&](QmpTap&, const json::object& command) {
          writes_wait = last == "job-complete" || (writes_wait && last != "job-finalize");
          last = command.at("execute").as_string();
          if (!nth() || writes_wait)
            return;
          name = last;
          // A cluster of the bitmap for each.
          machine.write(disk, fmt::format("write -P {} {} 64k", i + 1, (i + 1) << 16));
        });
    EXPECT_EQ(failed.status, 0) << failed.err;
    was_there = nth.was_there();
    copy(i + 1);
    ASSERT_EQ(difference(previous, "qcow2", machine.model(disk), "raw"), "") << "before " << name;
  }
}

/// A commit of what the guest writes to was cancelled: that leaves the base writable in QEMU (7.2),
/// and a later commit below the guest's overlay, which finds it so, does not flush it.
class CommitIntoAWritableBase : public ::testing::Test {
 protected:
  const MachineDisk& disk() const { return machine_->disks().front(); }

  void start() {
    machine_.emplace(std::vector<MachineDisk>{{.name = "vda", .size = 128 << 20}});
    points_.emplace(*machine_);
    begin(*points_);
    end(*points_, {"--success"});
    begin(*points_);
    machine_->write(disk(), "write -P 5 0 100M");
    end(*points_, {"--failure", "--commit-deadline", "0"});
    machine_->write(disk(), "write -P 77 110M 64k");
    machine_->write(disk(), "write -P 78 120M 4M");
    machine_->write(disk(), "flush");
  }

  /// Of QEMU, before the command of this index after the lower commit, queries aside. Returns false
  /// where there is no such command.
  bool kill(const std::string& name, int index) {
    bool committing = false;
    Nth nth(index);
    const auto before = [&](QmpTap&, const json::object& command) {
      if (command.at("execute") == "block-commit")
        committing = committing || command.at("arguments").as_object().contains("top-node");
      else if (committing && !command.at("execute").as_string().starts_with("query-") && nth())
        machine_->kill();
    };
    watched(*machine_, *points_, name, name == "begin" ? kPlain : Command{}, before);
    return nth.was_there();
  }

  void expect_nothing_lost(int index) {
    const Outcome recover = run(points_->offline_recovery(machine_->image(disk())));
    EXPECT_EQ(recover.status, 0) << recover.err;
    EXPECT_EQ(machine_->difference_from_model(disk()), "") << "killed at command " << index;
    EXPECT_THAT(machine_->leftovers(), IsEmpty());
  }

  std::optional<Machine> machine_;
  std::optional<Points> points_;
};

TEST_F(CommitIntoAWritableBase, ByTheNextSessionLosesNothing) {
  start();
  for (int i = 0; kill("begin", i) && !HasFailure(); ++i) {
    expect_nothing_lost(i);
    start();
  }
}

TEST_F(CommitIntoAWritableBase, ByARecoveryLosesNothing) {
  const auto start_and_die_after_the_switch = [this] {
    start();
    watched(*machine_, *points_, "begin", kPlain, [](QmpTap& tap, const json::object& command) {
      if (command.at("execute") == "block-commit")
        tap.kill_client();
    });
  };
  start_and_die_after_the_switch();
  for (int i = 0; kill("recover", i) && !HasFailure(); ++i) {
    expect_nothing_lost(i);
    start_and_die_after_the_switch();
  }
}

/// A job of other software puts a node between the guest and its overlay.
TEST(Filter, OfOtherSoftwareDoesNotHideTheOverlayThatIsInUse) {
  Machine machine({{.name = "vda"}});
  Points points(machine);
  const MachineDisk& disk = machine.disks().front();
  begin(points);
  create_image(machine.folder() + "/target.qcow2", "qcow2", disk.size);
  const auto expect_done = [](const json::value& answer) {
    EXPECT_EQ(answer, json::value(json::object()));
  };
  expect_done(machine.command(
      "blockdev-add",
      {{"driver", "qcow2"},
       {"node-name", "target"},
       {"file", {{"driver", "file"}, {"filename", machine.folder() + "/target.qcow2"}}}}));
  const json::value top = machine.command("query-block").at(0).at("inserted");
  const std::string overlay(top.at("file").as_string());
  expect_done(machine.command("blockdev-backup", {{"job-id", "somebody"},
                                                  {"device", top.at("node-name")},
                                                  {"target", "target"},
                                                  {"sync", "full"},
                                                  {"speed", 65536},
                                                  {"filter-node-name", "filter"}}));
  const Outcome failed = run(points.command("end", {"--failure"}));
  EXPECT_TRUE(fs::exists(overlay)) << failed.err;
  machine.write(disk, "write -P 77 1M 64k");
  machine.write(disk, "flush");
  expect_done(machine.command("job-cancel", {{"id", "somebody"}}));
  while (!machine.command("query-jobs").as_array().empty())
    std::this_thread::sleep_for(10ms);
  const Outcome recover = run(points.command("recover"));
  EXPECT_EQ(recover.status, 0) << recover.err;
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  machine.quit();
  EXPECT_EQ(machine.difference_from_model(disk), "");
}

/// The repository is full when the restore point is there, and the commit is about to begin.
class JournalThatCannotBeWritten : public ::testing::Test {
 protected:
  JournalThatCannotBeWritten() {
    points_.backup();
    machine_.write(machine_.disks().front(), "write -P 1 1M 64k");
  }

  /// A backup of which no journal is written after its pull, until a command was shown to `before`.
  void backup(const std::function<void(const std::string&)>& before) {
    const QmpTap tap(machine_.folder() + "/tap", machine_.qmp(), before);
    points_.connect_to(tap.path());
    HeldBackup held(points_);
    ASSERT_EQ(::mknod(partial_.c_str(), S_IFCHR | 0600, makedev(1, 7)), 0);  // as /dev/full
    points_.remember("0002-incremental");
    const Outcome outcome = held.release();
    points_.connect_to(machine_.qmp());
    EXPECT_EQ(outcome.status, 1);
    EXPECT_THAT(outcome.err, HasSubstr("restore point 0002-incremental is complete"));
    EXPECT_THAT(outcome.err, HasSubstr("No space left on device"));
  }

  Machine machine_{{{.name = "vda"}}};
  Points points_{machine_};
  const std::string partial_ = points_.vm_folder() + "/nbdelta-session.json.partial";
};

TEST_F(JournalThatCannotBeWritten, BeforeTheCommitDoesNotKeepTheGuestFromItsBase) {
  backup([this](const std::string&) { fs::remove(partial_); });
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  EXPECT_EQ(type_of(points_.backup()), "incremental");
  points_.check();
}

TEST_F(JournalThatCannotBeWritten, AtAllLeavesWhatRecoverFinishes) {
  backup([](const std::string&) {});
  machine_.write(machine_.disks().front(), "write -P 2 2M 64k");
  fs::remove(partial_);
  run_ok(points_.command("recover"));
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  EXPECT_EQ(type_of(points_.backup()), "incremental");
  points_.check();
}

}  // namespace
}  // namespace nbdelta::testing
