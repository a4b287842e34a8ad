#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "tests/client/session/held_backup.hpp"
#include "tests/client/session/session_test.hpp"
#include "tests/client/session/watched.hpp"

/// What keeps an overlay from being committed, though nothing is broken: it is said, nothing is
/// lost, and overlays do not pile up.
namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;

std::string monitor(Machine& machine, const std::string& line) {
  return std::string(
      machine.command("human-monitor-command", {{"command-line", line}}).as_string());
}

std::size_t count_overlays(const Machine& machine) {
  std::size_t count = 0;
  for (const auto& entry : fs::directory_iterator(machine.folder())) {
    const std::string name = entry.path().filename();
    count += name.starts_with("nbdelta-") && name.ends_with(".qcow2") &&
             !name.starts_with("nbdelta-current-");
  }
  return count;
}

class SavedState : public ::testing::Test {
 protected:
  void save() { ASSERT_EQ(monitor(machine_, "savevm lunch"), ""); }
  void expect_saved() { EXPECT_THAT(monitor(machine_, "info snapshots"), HasSubstr("lunch")); }
  void expect_said(const Outcome& outcome, int status = 1) {
    EXPECT_EQ(outcome.status, status) << outcome.out;
    EXPECT_THAT(outcome.err, HasSubstr("vda: "));
    EXPECT_THAT(outcome.err, HasSubstr("holds snapshots of the guest that would go with it"));
    EXPECT_THAT(outcome.err, HasSubstr("(lunch)"));
    EXPECT_THAT(outcome.err, HasSubstr("'delvm NAME' in QEMU's human monitor"));
    expect_saved();
  }
  Outcome backup(const std::string& tracking) {
    return run(points_.command("backup", {"--quiesce", "no", "--tracking", tracking}));
  }

  Machine machine_{{{.name = "vda"}}};
  Points points_{machine_};
  const MachineDisk& disk_ = machine_.disks().front();
};

TEST_F(SavedState, InTheOverlayOfASessionStays) {
  machine_.write(disk_, "write -P 1 0 1M");
  run_ok(points_.command("begin", {"--quiesce", "no"}));
  save();
  machine_.write(disk_, "write -P 2 1M 1M");
  expect_said(run(points_.command("end", {"--success"})));
  expect_said(run(points_.command("recover")));
  expect_said(run(points_.command("begin", {"--quiesce", "no"})));
  EXPECT_EQ(count_overlays(machine_), 1U);
  monitor(machine_, "delvm lunch");
  EXPECT_THAT(run_ok(points_.command("begin", {"--quiesce", "no"})), HasSubstr("incremental"));
  run_ok(points_.command("end", {"--success"}));
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  machine_.quit();
  EXPECT_EQ(machine_.difference_from_model(disk_), "");
}

TEST_F(SavedState, InTheOverlayThatAlwaysStaysIsRefusedWhileItCanBeDeleted) {
  points_.backup({"--tracking", "overlay"});
  save();
  for (const char* tracking : {"overlay", "bitmap", "overlay"})
    expect_said(backup(tracking), 3);
  EXPECT_EQ(count_overlays(machine_), 1U);
  monitor(machine_, "delvm lunch");
  machine_.write(disk_, "write -P 3 2M 1M");
  points_.remember("0002-incremental");
  HeldBackup held(points_, {"--tracking", "overlay"});
  save();
  const Outcome second = held.release();
  EXPECT_EQ(second.status, 0) << second.err;  // it is in the overlay that stays
  expect_said(backup("overlay"), 3);
  EXPECT_EQ(count_overlays(machine_), 1U);
  points_.check();
  machine_.quit();
  const std::string image = machine_.image(disk_);
  const std::string overlay = machine_.current(disk_);
  const Outcome offline = run(points_.offline_recovery(image));
  EXPECT_EQ(offline.status, 1);
  EXPECT_THAT(offline.err, HasSubstr(overlay + ": holds snapshots of the guest"));
  EXPECT_THAT(offline.err, HasSubstr("'qemu-img snapshot -d NAME " + overlay + "'"));
  EXPECT_EQ(machine_.current(disk_), overlay);
  EXPECT_EQ(machine_.difference_from_model(disk_), "");
  qemu_img({"snapshot", "-d", "lunch", overlay});
  run_ok(points_.offline_recovery(image));
  EXPECT_EQ(difference(image, "qcow2", machine_.model(disk_), "raw"), "");
}

/// When it has copied all, and is about to move the guest.
TEST_F(SavedState, DuringTheCommitStays) {
  machine_.write(disk_, "write -P 1 0 1M");
  run_ok(points_.command("begin", {"--quiesce", "no"}));
  machine_.write(disk_, "write -P 5 0 24M");
  const Outcome end = watched(machine_, points_, "end", {"--success"},
                              [&](QmpTap& /*tap*/, const boost::json::object& command) {
                                if (command.at("execute").as_string() == "job-complete")
                                  save();
                              });
  expect_said(end);
}

class GrownDisk : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kGrown = 40 << 20;

  void grow() {
    const std::string node(
        machine_.command("query-block").at(0).at("inserted").at("node-name").as_string());
    machine_.command("block_resize", {{"node-name", node}, {"size", kGrown}});
    fs::resize_file(machine_.model(disk_), kGrown);
    machine_.write(disk_, "write -P 9 36M 1M");
  }
  /// QEMU has ended. What opens the image to write to it, and is killed, leaves its bitmaps so.
  void make_inconsistent(const std::string& bitmap) const {
    qemu_img({"bitmap", "--add", image_, bitmap});
    const std::string socket = machine_.folder() + "/nbd";
    Background server({"qemu-nbd", "-f", "qcow2", "-t", "-k", socket, image_});
    while (!fs::exists(socket))
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    run_ok({"nbdinfo", "--size", "nbd+unix:///?socket=" + socket});  // the image is open by now
    server.signal(SIGKILL);
    server.wait(kDefaultTimeout);
    fs::remove(socket);
    ASSERT_THAT(qemu_img({"info", image_}), HasSubstr("in-use"));
  }
  Outcome backup(const Command& more = {}) {
    return run(points_.command("backup", joined({"--quiesce", "no"}, more)));
  }
  void expect_grown_and_whole() {
    points_.check();
    machine_.quit();
    if (machine_.current(disk_) != image_)
      run_ok(points_.offline_recovery(image_));
    EXPECT_EQ(difference(image_, "qcow2", machine_.model(disk_), "raw"), "");
    EXPECT_THAT(qemu_img({"info", image_}), HasSubstr("40 MiB"));
  }

  Machine machine_{{{.name = "vda"}}};
  Points points_{machine_};
  const MachineDisk& disk_ = machine_.disks().front();
  const std::string image_ = machine_.image(disk_);
  const Command overlay_{"--tracking", "overlay"};
};

TEST_F(GrownDisk, OverABitmapOfOursThatACrashHasLeft) {
  points_.backup();
  machine_.kill();
  machine_.start();
  EXPECT_EQ(type_of(points_.backup(overlay_)), "full");
  grow();
  EXPECT_EQ(type_of(points_.backup(overlay_)), "full");
  EXPECT_EQ(type_of(points_.backup(overlay_)), "incremental");
  EXPECT_EQ(count_overlays(machine_), 1U);
  expect_grown_and_whole();
}

TEST_F(GrownDisk, OverABitmapOfOursThatIsBelowTheOverlayAlready) {
  points_.backup(overlay_);
  machine_.quit();
  make_inconsistent("nbdelta-ffffffff-0001");
  machine_.start();
  grow();
  run_ok(points_.command("recover"));
  EXPECT_EQ(type_of(points_.backup(overlay_)), "full");
  EXPECT_EQ(count_overlays(machine_), 1U);
  expect_grown_and_whole();
}

TEST_F(GrownDisk, OverABitmapOfOursIsCommittedOffline) {
  points_.backup(overlay_);
  machine_.quit();
  make_inconsistent("nbdelta-ffffffff-0001");
  machine_.start();
  grow();
  expect_grown_and_whole();
}

TEST_F(GrownDisk, OverAForeignBitmapIsRefusedBeforeAnythingIsSwitched) {
  machine_.quit();
  make_inconsistent("theirs");
  machine_.start();
  for (const Command& more : {Command(), overlay_}) {
    const bool stays = !more.empty();  // the overlay
    const Outcome outcome = backup(more);
    EXPECT_EQ(outcome.status, stays ? 3 : 0);
    EXPECT_THAT(outcome.err, HasSubstr(image_ + " has an inconsistent bitmap of other software "
                                                "(theirs)"));
    EXPECT_THAT(outcome.err, HasSubstr("block-dirty-bitmap-remove, node vda"));
    EXPECT_THAT(outcome.err, HasSubstr("'qemu-img bitmap --remove " + image_ + " theirs'"));
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
  }
  machine_.command("block-dirty-bitmap-remove", {{"node", "vda"}, {"name", "theirs"}});
  EXPECT_EQ(type_of(points_.backup(overlay_)), "incremental");
}

/// The session that it is made larger in can be ended once the guest has been shut down.
TEST_F(GrownDisk, OverAForeignBitmapIsSaidWhenASessionByBitmapEnds) {
  machine_.quit();
  make_inconsistent("theirs");
  machine_.start();
  run_ok(points_.command("begin", {"--quiesce", "no"}));
  grow();
  for (const Command& words : {points_.command("end", {"--success"}), points_.command("recover"),
                               points_.command("begin", {"--quiesce", "no"})}) {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.status, 1);
    EXPECT_THAT(outcome.err, HasSubstr("'qemu-img bitmap --remove " + image_ + " theirs'"));
    EXPECT_EQ(count_overlays(machine_), 1U);
  }
  machine_.quit();
  qemu_img({"bitmap", "--remove", image_, "theirs"});
  run_ok(points_.offline_recovery(image_));
  EXPECT_EQ(difference(image_, "qcow2", machine_.model(disk_), "raw"), "");
}

TEST_F(GrownDisk, OverAForeignBitmapDoesNotPileUpOverlays) {
  points_.backup(overlay_);
  points_.backup(overlay_);
  machine_.quit();
  make_inconsistent("theirs");
  machine_.start();
  grow();
  for (int i = 0; i < 3; ++i)
    EXPECT_THAT(backup(overlay_).err, HasSubstr("inconsistent bitmap of other software (theirs)"));
  EXPECT_EQ(count_overlays(machine_), 1U);
  const Outcome recover = run(points_.command("recover"));
  EXPECT_EQ(recover.status, 1);
  EXPECT_THAT(recover.err, HasSubstr("'qemu-img bitmap --remove " + image_ + " theirs'"));
  machine_.quit();
  const std::string current = machine_.current(disk_);
  const Outcome offline = run(points_.offline_recovery(image_));
  EXPECT_EQ(offline.status, 1);
  EXPECT_THAT(offline.err, HasSubstr("'qemu-img bitmap --remove " + image_ + " theirs'"));
  EXPECT_EQ(machine_.current(disk_), current);
  EXPECT_EQ(machine_.difference_from_model(disk_), "");
  qemu_img({"bitmap", "--remove", image_, "theirs"});
  machine_.start();
  expect_grown_and_whole();
}

/// The guest was started on its overlay, so QEMU has made up the name of the base's node; and a
/// commit that is given up leaves the base writable.
class NamelessBase : public ::testing::TestWithParam<bool> {};

TEST_P(NamelessBase, IsReadAgainAfterACommitThatWasGivenUp) {
  Machine machine({{.name = "vda", .size = 64 << 20, .by_drive = GetParam()}});
  Points points(machine);
  const MachineDisk& disk = machine.disks().front();
  points.backup({"--tracking", "overlay"});
  machine.quit();
  machine.start();
  machine.write(disk, "write -P 4 0 1M");
  points.remember("0002-incremental");
  HeldBackup held(points, {"--commit-deadline", "0"});
  machine.write(disk, "write -P 5 0 48M");
  const Outcome given_up = held.release();
  ASSERT_EQ(given_up.status, 0) << given_up.err;
  ASSERT_THAT(given_up.err, HasSubstr("writes faster than its overlay can be committed"));
  machine.write(disk, "write -P 6 50M 8M");
  points.remember("0003-incremental");
  points.backup({"--commit-deadline", "0"});
  machine.write(disk, "write -P 7 1M 8M");
  run_ok(points.command("recover"));
  points.backup();
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  points.check();
  machine.quit();
  EXPECT_EQ(machine.difference_from_model(disk), "");
}

/// Whoever opens that again by its options would have to name the data file, too.
TEST(BaseWithADataFile, IsReadAgainAfterACommitThatWasGivenUp) {
  const TempFolder data;
  Machine machine(
      {{.name = "vda", .size = 64 << 20, .options = "data_file=" + (data / "vda.raw")}});
  Points points(machine);
  const MachineDisk& disk = machine.disks().front();
  points.backup();
  run_ok(points.command("begin", {"--quiesce", "no"}));
  machine.write(disk, "write -P 5 0 48M");
  run(points.command("end", {"--failure", "--commit-deadline", "0"}));
  ASSERT_THAT(machine.leftovers(), Not(IsEmpty())) << "the overlay was committed in no time";
  points.backup();
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  points.check();
}

INSTANTIATE_TEST_SUITE_P(By, NamelessBase, ::testing::Bool(), [](const auto& row) {
  return std::string(row.param ? "drive" : "blockdev");
});

}  // namespace
}  // namespace nbdelta::testing
