#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/client/session/session_test.hpp"
#include "tests/client/session/small_file_system.hpp"

/// What bad input gets: a message that says what and where, the guest as it was, nothing of ours
/// left, and the next incremental complete.
namespace nbdelta::testing {
namespace {

class Refusal : public ::testing::Test {
 protected:
  void expect_refused(const Command& words, int status, const std::string& message) {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.status, status) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message));
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
  }

  /// Of the restore points.
  std::string chain() const {
    const Outcome outcome = run(points_.command("status", {"--json"}));
    const boost::json::value status = boost::json::parse(outcome.out);
    const std::string name(status.at("disks").at(0).at("bitmaps").at(0).at("name").as_string());
    return name.substr(8, 8);
  }

  Machine machine_{{{.name = "vda"}, {.name = "vdb", .format = "raw"}}};
  Points points_{machine_};
};

TEST_F(Refusal, Sockets) {
  const Command to{"--vm", "vm", "--to", points_.repository()};
  const auto words = [&](const std::string& qmp) {
    Command command = nbdelta_command({"backup", "--qmp", qmp});
    command.insert(command.end(), to.begin(), to.end());
    return command;
  };
  expect_refused(words("/nowhere/qmp"), 1, "QMP at /nowhere/qmp: No such file or directory");
  expect_refused(words("127.0.0.1:1"), 1, "QMP at 127.0.0.1:1: Connection refused");
  const std::string much = "/" + std::string(200, 'x');
  expect_refused(words(much), 1, "QMP at " + much + ": a Unix socket's path has at most 107 bytes");
  // It speaks, but not QMP.
  const TempFolder folder;
  create_image(folder / "x.raw", "raw", 1 << 20);
  const NbdServer server = NbdServer::qemu_nbd({"-f", "raw", folder / "x.raw"});
  const std::string uri = server.uri("");
  expect_refused(words(uri.substr(uri.find("socket=") + 7)), 1, "is no QMP server");
}

TEST_F(Refusal, CommandLines) {
  expect_refused(nbdelta_command({"backup", "--qmp", machine_.qmp()}), 2, "--vm");
  expect_refused(points_.command("backup", {"--quiesce", "sometimes"}), 2, "--quiesce");
  expect_refused(points_.command("backup", {"--quiesce", "require"}), 2, "needs --agent");
  expect_refused(points_.command("backup", {"--path", "/a"}), 2, "expected QEMU=LOCAL");
  for (const char* deadline : {"nan", "0", "1e9"})
    expect_refused(points_.command("backup", {"--freeze-deadline", deadline}), 2, "not in range");
  expect_refused(points_.command("backup", {"--disk", "vdz"}), 3, "the guest has no such disk");
  expect_refused(points_.command("backup", {"--exclude", "vdz"}), 3, "the guest has no such disk");
  expect_refused(points_.command("backup", {"--require-incremental"}), 3,
                 "an incremental cannot be made: there is no restore point yet");
  expect_refused(nbdelta_command({"backup", "--qmp", machine_.qmp(), "--vm", "../x", "--to", "/y"}),
                 2, "must be a name");
  expect_refused(nbdelta_command({"recover"}), 2, "--offline");
}

/// JSON could not hold it: what is written down of the session could never be read again.
TEST_F(Refusal, TextThatIsNotUtf8) {
  const std::string latin1 = "B\xfcro";
  const std::string folder = machine_.folder() + "/" + latin1;
  std::filesystem::create_directory(folder);
  const auto with = [&](const std::string& vm, const std::string& to, const Command& more) {
    return joined(nbdelta_command({"backup", "--quiesce", "no", "--qmp", machine_.qmp(), "--vm", vm,
                                   "--to", to}),
                  more);
  };
  const std::string to = points_.repository();
  const std::string message = "is not UTF-8";
  expect_refused(with(latin1, to, {}), 2, "--vm " + latin1 + ": " + message);
  expect_refused(with("vm", folder, {}), 2, message);
  for (const Command& more : {Command{"--overlay-dir", folder}, Command{"--path", "/x=" + folder},
                              Command{"--agent", folder}})
    expect_refused(with("vm", to, more), 2, more.front());
  expect_refused(points_.command("begin", {"--quiesce", "no", "--socket-dir", folder}), 2, message);
  EXPECT_FALSE(std::filesystem::exists(to));
}

TEST_F(Refusal, ImageWhosePathHereIsNotUtf8) {
  const TempFolder elsewhere;
  const std::string latin1 = elsewhere / "B\xfcro";
  std::filesystem::create_directory(latin1);
  for (const MachineDisk& disk : machine_.disks())
    run_ok({"cp", machine_.image(disk), latin1});
  std::filesystem::create_directory_symlink(latin1, elsewhere / "images");
  expect_refused(
      points_.command("backup", {"--path", machine_.folder() + "=" + (elsewhere / "images")}), 3,
      "has a path here that is not UTF-8");
}

/// QEMU does not show it; what is below the overlay is written to all the same.
TEST(CopyOnRead, IsRefused) {
  const TempFolder folder;
  create_image(folder / "below.qcow2", "qcow2", 8 << 20);
  create_overlay(folder / "x.qcow2", folder / "below.qcow2", "qcow2");
  Machine machine(
      {{.name = "vda"}},
      {"-drive", "if=none,id=vdb,format=qcow2,copy-on-read=on,file=" + (folder / "x.qcow2"),
       "-device", "virtio-blk-pci,drive=vdb,id=vdb"});
  Points points(machine);
  for (const Command& more : {Command{}, Command{"--direct"}}) {
    const Outcome outcome = run(points.command("backup", joined(Command{"--quiesce", "no"}, more)));
    EXPECT_EQ(outcome.status, 3);
    EXPECT_THAT(outcome.err, HasSubstr("vdb: cannot be backed up: QEMU may write to"));
    EXPECT_THAT(outcome.err, HasSubstr("leave the disk out with --exclude vdb"));
    EXPECT_THAT(machine.leftovers(), IsEmpty());
  }
  points.backup({"--exclude", "vdb"});
}

TEST(TwoDevices, OnOneNodeAreRefused) {
  const TempFolder folder;
  create_image(folder / "x.qcow2", "qcow2", 8 << 20);
  Machine machine(
      {{.name = "vda"}},
      {"-blockdev", "qcow2,node-name=n,file.driver=file,file.filename=" + folder / "x.qcow2",
       "-device", "virtio-blk-pci,drive=n,id=vdb,share-rw=on", "-device",
       "virtio-blk-pci,drive=n,id=vdc,share-rw=on"});
  Points points(machine);
  for (const Command& more : {Command{"--dry-run"}, Command{}}) {
    const Outcome outcome = run(points.command("backup", joined(Command{"--quiesce", "no"}, more)));
    EXPECT_EQ(outcome.status, 3);
    EXPECT_THAT(outcome.err, HasSubstr("vdb: cannot be backed up: 2 devices of the guest use"));
  }
  points.backup({"--exclude", "vdb", "--exclude", "vdc"});
}

TEST(BackingFile, ThatIsNoPlainNameIsRefused) {
  const TempFolder folder;
  create_image(folder / "below.qcow2", "qcow2", 8 << 20);
  create_overlay(folder / "x.qcow2", folder / "below.qcow2", "qcow2");
  qemu_img({"rebase", "-u", "-b",
            R"(json:{"driver":"qcow2","file":{"driver":"file","filename":")" +
                (folder / "below.qcow2") + R"("}})",
            "-F", "qcow2", folder / "x.qcow2"});
  Machine machine({{.name = "vda"}}, {"-drive", "if=none,id=vdb,file=" + (folder / "x.qcow2"),
                                      "-device", "virtio-blk-pci,drive=vdb,id=vdb"});
  Points points(machine);
  const Outcome outcome = run(points.command("backup", {"--dry-run"}));
  EXPECT_EQ(outcome.status, 3);
  EXPECT_THAT(outcome.err, HasSubstr("only plain file names are opened"));
  EXPECT_THAT(outcome.err, Not(HasSubstr("--path")));
}

TEST_F(Refusal, BitmapsThatCannotBeUsed) {
  points_.backup();
  const std::string name = "nbdelta-" + chain() + "-0001";
  machine_.command("block-dirty-bitmap-disable", {{"node", "vda"}, {"name", name}});
  expect_refused(points_.command("backup", {"--require-incremental"}), 3,
                 "was disabled and has a gap");
  machine_.command("block-dirty-bitmap-remove", {{"node", "vda"}, {"name", name}});
  expect_refused(points_.command("backup", {"--require-incremental"}), 3, "is missing");
  const auto result = points_.backup();
  EXPECT_EQ(type_of(result, 0), "full");
  EXPECT_THAT(std::string(result.at("disks").at(0).at("reason").as_string()),
              HasSubstr("is missing"));
  EXPECT_EQ(type_of(result, 1), "incremental");
  points_.check();
}

/// QEMU marks a bitmap that it records in as in use; one that is found so at its next start misses
/// writes.
TEST(InconsistentBitmap, TheNextBackupIsAFullAndSaysSo) {
  Machine machine({{.name = "vda"}, {.name = "vdb"}});
  Points points(machine);
  points.backup();
  machine.write(machine.disks()[0], "write -P 1 0 1M");
  machine.kill();
  machine.start();
  EXPECT_THAT(run_ok(points.command("status")), HasSubstr(", inconsistent"));
  const Outcome refused = run(points.command("backup", {"--require-incremental"}));
  EXPECT_EQ(refused.status, 3);
  EXPECT_THAT(refused.err, HasSubstr("vda: an incremental cannot be made: its bitmap nbdelta-"));
  EXPECT_THAT(refused.err, HasSubstr("is inconsistent (QEMU did not end well)"));

  const Outcome full = run(points.command("backup", {"--quiesce", "no"}));
  EXPECT_EQ(full.status, 0) << full.err;
  points.remember("0002-full");
  for (const char* disk : {"vda", "vdb"})
    EXPECT_THAT(full.err, HasSubstr(fmt::format("{}: a full backup, because its bitmap", disk)));
  machine.write(machine.disks()[1], "write -P 2 1M 1M");
  const auto next = points.backup({"--require-incremental"});
  EXPECT_EQ(type_of(next, 0), "incremental");
  EXPECT_EQ(type_of(next, 1), "incremental");
  points.check();
}

TEST_F(Refusal, ImageThatIsNotWherePathSays) {
  expect_refused(points_.command("backup", {"--path", machine_.folder() + "=/nowhere"}), 3,
                 "--path QEMU=LOCAL says where it is on this machine");
}

TEST_F(Refusal, OverlayThatIsNotWherePathSays) {
  points_.backup({"--tracking", "overlay"});
  const Outcome outcome = run(points_.command(
      "backup", {"--tracking", "overlay", "--path", machine_.folder() + "=/nowhere"}));
  EXPECT_EQ(outcome.status, 3);
  EXPECT_THAT(outcome.err, HasSubstr("vda: QEMU has its overlay at " + machine_.folder()));
  EXPECT_THAT(outcome.err, HasSubstr("--path QEMU=LOCAL says where it is on this machine"));
  points_.backup();
}

TEST(BlockDevice, SmallerThanItsOverlayIsNamed) {
  const TempFolder folder;
  create_image(folder / "disk", "raw", 8 << 20);
  std::string device = run_ok({"losetup", "--find", "--show", folder / "disk"});
  device.pop_back();
  {
    Machine machine({{.name = "vda"}},
                    {"-blockdev", "raw,node-name=n,file.driver=host_device,file.filename=" + device,
                     "-device", "virtio-blk-pci,drive=n,id=vdb"});
    Points points(machine);
    const Command words =
        points.command("backup", {"--quiesce", "no", "--disk", "vdb", "--tracking", "overlay",
                                  "--overlay-dir", machine.folder()});
    run_ok(words);
    const auto devices = machine.command("query-block");
    const auto& node = devices.at(1).at("inserted").at("node-name");
    machine.command("block_resize", {{"node-name", node}, {"size", 9 << 20}});
    machine.command("human-monitor-command",
                    {{"command-line",
                      "qemu-io -d /machine/peripheral/vdb/virtio-backend \"write -P 1 8M 64k\""}});
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.status, 1);
    EXPECT_THAT(outcome.err, HasSubstr("it has 9437184 bytes, and " + device +
                                       " below it has 8388608; a block device must be made as"));
    std::filesystem::resize_file(folder / "disk", 9 << 20);
    run_ok({"losetup", "--set-capacity", device});
    run_ok(words);
    // Takes the overlay off: what names it would stay in /dev.
    run_ok(points.command("backup",
                          {"--quiesce", "no", "--disk", "vdb", "--overlay-dir", machine.folder()}));
    for (const auto& entry : std::filesystem::directory_iterator("/dev")) {
      if (entry.path().filename().string().starts_with("nbdelta-")) {
        EXPECT_THAT(text_of_file(entry.path()), Not(HasSubstr(machine.folder()))) << entry.path();
      }
    }
    machine.quit();
  }
  run_ok({"losetup", "--detach", device});
}

TEST_F(Refusal, GuestThatAnotherRepositoryTracksByOverlay) {
  points_.backup({"--tracking", "overlay"});
  Points other(machine_, "other");
  const Outcome refused = run(other.command("backup", {"--quiesce", "no"}));
  EXPECT_EQ(refused.status, 3);
  EXPECT_THAT(refused.err, HasSubstr("a backup to that repository with --tracking bitmap takes"));
  points_.backup({"--tracking", "bitmap"});
  other.backup();
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

TEST_F(Refusal, PathsAreMapped) {
  const TempFolder elsewhere;
  std::filesystem::create_directory_symlink(machine_.folder(), elsewhere / "images");
  // Another name of the same folder stands for a mount of the same storage.
  machine_.write(machine_.disks()[0], "write -P 1 0 1M");
  points_.backup({"--path", machine_.folder() + "=" + (elsewhere / "images")});
  points_.check();
}

TEST_F(Refusal, SecondNbdeltaOnTheSameRepository) {
  points_.backup();
  std::ofstream(points_.vm_folder() + "/nbdelta-lock").close();
  const Outcome outcome =
      run({"flock", points_.vm_folder() + "/nbdelta-lock", nbdelta_program(), "backup", "--qmp",
           machine_.qmp(), "--vm", "vm", "--to", points_.repository()});
  EXPECT_EQ(outcome.status, 3);
  EXPECT_THAT(outcome.err, HasSubstr("another nbdelta is at work here"));
}

TEST_F(Refusal, FullRepository) {
  points_.backup();
  machine_.write(machine_.disks()[0], "write -P 1 0 16M");
  const SmallFileSystem small("4M");
  run_ok({"cp", "-a", points_.vm_folder() + "/.", small.path() + "/vm"});
  const Command words = nbdelta_command(
      {"backup", "--qmp", machine_.qmp(), "--vm", "vm", "--to", small.path(), "--quiesce", "no"});
  expect_refused(words, 1, "the guest runs as before");
  EXPECT_EQ(type_of(points_.backup()), "incremental");
  points_.check();
}

TEST_F(Refusal, OptionsOfAFreezeThatIsNotWanted) {
  const Command presync{"--quiesce", "no", "--presync"};
  expect_refused(points_.command("backup", presync), 2, "--quiesce no excludes --presync");
}

TEST_F(Refusal, GuestThatDoesNotRun) {
  machine_.command("stop");
  const Outcome outcome = run(points_.command("backup"));
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("the guest does not run (paused)"));
  EXPECT_THAT(run_ok(points_.command("status")), HasSubstr("the guest does not run (paused)"));
  machine_.command("cont");
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

TEST_F(Refusal, BaseThatSomebodyElseHoldsAtTheCommit) {
  points_.backup();
  machine_.write(machine_.disks()[0], "write -P 1 0 1M");
  // Our own plugin takes the lock; begin leaves it there.
  run_ok(points_.command("begin", {"--quiesce", "no"}));
  const NbdServer other = NbdServer::delta({machine_.image(machine_.disks()[0])});
  const Outcome end = run(points_.command("end", {"--failure"}));
  EXPECT_EQ(end.status, 1);
  EXPECT_THAT(end.err, HasSubstr("Failed to get \"write\" lock"));
  EXPECT_THAT(end.err, HasSubstr("then run 'nbdelta recover'"));
  machine_.write(machine_.disks()[0], "write -P 2 512k 1M");
}

TEST(NoSpace, OnTheBaseLeavesASessionThatRecoverFinishes) {
  SmallFileSystem small("4M");
  const TempFolder overlays;
  Machine machine({{.name = "vda", .format = "raw", .folder = small.path()}});
  Points points(machine);
  points.backup();
  run_ok(points.command("begin", {"--quiesce", "no", "--overlay-dir", overlays.path()}));
  machine.write(machine.disks()[0], "write -P 7 0 16M");
  const Outcome end = run(points.command("end", {"--failure"}));
  EXPECT_EQ(end.status, 1);
  EXPECT_THAT(end.err, HasSubstr("No space left on device"));
  EXPECT_THAT(end.err, HasSubstr("make room, then run 'nbdelta recover'"));
  machine.write(machine.disks()[0], "write -P 8 1M 1M");  // the guest runs on
  small.resize("64M");
  run_ok(points.command("recover"));
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  points.backup();
  points.check();
}

TEST(NoSpace, ForTheOverlay) {
  SmallFileSystem full("8K");
  Machine machine({{.name = "vda"}});
  Points points(machine);
  const Outcome backup =
      run(points.command("backup", {"--quiesce", "no", "--overlay-dir", full.path()}));
  EXPECT_EQ(backup.status, 1);
  EXPECT_THAT(backup.err, HasSubstr("No space left on device"));
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  EXPECT_EQ(type_of(points.backup()), "full");
}

class Migration : public Refusal {
 protected:
  static std::string state(Machine& machine) {
    const boost::json::value answer = machine.command("query-migrate");
    const boost::json::value* status = answer.as_object().if_contains("status");
    return status == nullptr ? "none" : std::string(status->as_string());
  }
  void migrate(std::uint64_t bytes_per_s, const std::string& until) {
    machine_.command("migrate-set-parameters", {{"max-bandwidth", bytes_per_s}});
    machine_.command("migrate", {{"uri", "exec:cat >/dev/null"}});
    wait_for(until);
  }
  void wait_for(const std::string& until) {
    for (int i = 0; i < 1000 && state(machine_) != until; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ASSERT_EQ(state(machine_), until);
  }
};

TEST_F(Migration, NothingIsTouchedUntilItIsOver) {
  points_.backup();
  machine_.write(machine_.disks()[0], "write -P 1 0 1M");
  migrate(1000, "active");
  for (const Command& words : {points_.command("backup"), points_.command("backup", {"--dry-run"}),
                               points_.command("begin", {"--tracking", "overlay"})})
    expect_refused(words, 3, "the guest is migrating (active); try again when it has arrived");
  EXPECT_EQ(state(machine_), "active");
  machine_.command("migrate_cancel");
  wait_for("cancelled");
  EXPECT_EQ(type_of(points_.backup()), "incremental");
  points_.check();
}

TEST_F(Migration, AGuestThatHasLeftIsRefused) {
  migrate(1 << 30, "completed");
  expect_refused(points_.command("backup"), 3, "the guest is migrating (completed)");
}

TEST(Incoming, AGuestThatHasNotArrivedIsRefused) {
  Machine machine({{.name = "vda"}}, {"-incoming", "defer"});
  Points points(machine);
  const Outcome outcome = run(points.command("backup"));
  EXPECT_EQ(outcome.status, 3);
  EXPECT_THAT(outcome.err, HasSubstr("the guest is migrating (inmigrate)"));
  EXPECT_THAT(machine.leftovers(), IsEmpty());
}

/// A QMP server that says what it is told, whatever it is asked.
TEST(Qemu, TooOldIsRefusedByVersionAndCommand) {
  const TempFolder folder;
  std::ofstream(folder / "answers")
      << R"({"QMP": {"version": {"qemu": {"major": 2, "minor": 8, "micro": 1}, "package": ""},)"
      << R"( "capabilities": []}})"
      << "\n"
      << R"({"return": {}, "id": 1})"
      << "\n"
      << R"({"return": [{"name": "transaction"}, {"name": "blockdev-add"}], "id": 2})"
      << "\n";
  const Background server({"socat", "UNIX-LISTEN:" + (folder / "qmp"),
                           "SYSTEM:cat " + (folder / "answers") + "; sleep 5"});
  while (!std::filesystem::exists(folder / "qmp"))
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const Outcome outcome = run(
      nbdelta_command({"backup", "--qmp", folder / "qmp", "--vm", "vm", "--to", folder / "repo"}));
  EXPECT_EQ(outcome.status, 3);
  EXPECT_THAT(outcome.err, HasSubstr("QEMU 2.8.1 is too old: it has no command blockdev-del"));
}

/// An address that was mistaken for another guest's.
TEST_F(Refusal, ASessionIsNotEndedInAnotherGuest) {
  Machine other({{.name = "vda"}});
  run_ok(points_.command("begin", {"--quiesce", "no"}));
  const std::vector<std::string> before = machine_.leftovers();
  points_.connect_to(other.qmp());
  for (const Command& words : {points_.command("recover"), points_.command("end", {"--success"}),
                               points_.command("end", {"--failure"})}) {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.status, 3) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("the guest at " + other.qmp() + " is not that of the"));
    EXPECT_THAT(outcome.err, HasSubstr("which was begun at " + machine_.qmp()));
    EXPECT_THAT(outcome.err, HasSubstr(machine_.image(machine_.disks()[0])));
    EXPECT_EQ(machine_.leftovers(), before);
    EXPECT_EQ(points_.phase(), "export");
  }
  points_.connect_to(machine_.folder() + "/again");  // the same guest, reached otherwise
  std::filesystem::create_symlink(machine_.qmp(), machine_.folder() + "/again");
  run_ok(points_.command("end", {"--success"}));
  std::filesystem::remove(machine_.folder() + "/again");
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

/// As libvirt starts QEMU: each image is a node of its own.
TEST(BackingFileByNode, IsTakenWhereTheHeaderNamesIt) {
  const TempFolder folder;
  create_image(folder / "base.qcow2", "qcow2", 32 << 20);
  qemu_io(folder / "base.qcow2", "qcow2", {"write -P 7 1M 64k"});
  run_ok({"cp", folder / "base.qcow2", folder / "other.qcow2"});
  qemu_img({"create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", folder / "a.qcow2"});
  const auto arguments = [&](const std::string& below) {
    return Command{"-blockdev",
                   "driver=qcow2,node-name=f2,read-only=on,file.driver=file,file.filename=" + below,
                   "-blockdev",
                   "driver=qcow2,node-name=f1,backing=f2,file.driver=file,file.filename=" +
                       (folder / "a.qcow2"),
                   "-device",
                   "virtio-blk-pci,drive=f1,id=vdx"};
  };
  {
    Machine machine({}, arguments(folder / "other.qcow2"));
    Points points(machine);
    const Outcome refused = run(points.command("backup", {"--quiesce", "no"}));
    EXPECT_EQ(refused.status, 3);
    EXPECT_THAT(refused.err, HasSubstr("QEMU has " + (folder / "other.qcow2") + " below " +
                                       (folder / "a.qcow2") + ", and the header of that names " +
                                       (folder / "base.qcow2")));
  }
  Machine machine({}, arguments(folder / "base.qcow2"));
  Points points(machine);
  for (const Command& more : {Command(), Command{"--tracking", "overlay"}, Command(), Command()})
    points.backup(more);
  machine.quit();
  const std::string last = points.vm_folder() + "/0004-incremental/vdx.qcow2";
  EXPECT_EQ(difference(last, "qcow2", folder / "a.qcow2", "qcow2"), "");
  EXPECT_EQ(difference(last, "qcow2", folder / "base.qcow2", "qcow2"), "");
}

TEST_F(Refusal, CheckStart) {
  const std::string vda = machine_.image(machine_.disks()[0]);
  EXPECT_EQ(run(nbdelta_command({"check-start", vda})).status, 0);
  run_ok(points_.command("begin", {"--quiesce", "no"}));
  const Outcome outcome = run(nbdelta_command({"check-start", vda}));
  EXPECT_EQ(outcome.status, 3);
  EXPECT_THAT(outcome.err, HasSubstr("must not be started"));
  run_ok(points_.command("end", {"--success"}));
  EXPECT_EQ(run(nbdelta_command({"check-start", vda})).status, 0);
}

}  // namespace
}  // namespace nbdelta::testing
