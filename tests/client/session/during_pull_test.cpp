#include <fmt/format.h>
#include <unistd.h>

#include <boost/json/serialize.hpp>
#include <chrono>
#include <thread>

#include "tests/client/session/held_backup.hpp"
#include "tests/client/session/small_file_system.hpp"
#include "tests/client/session/watched.hpp"

/// What can befall a guest while its frozen disks are copied.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;

/// Asks QEMU until it says so.
template <class Condition>
void wait_until(Condition condition) {
  for (int i = 0; i < 1000 && !condition(); ++i)
    std::this_thread::sleep_for(10ms);
  EXPECT_TRUE(condition());
}

Command recover_offline(const Points& points, const std::string& image) {
  return nbdelta_command(
      {"recover", "--offline", image, "--vm", "vm", "--to", points.repository()});
}

TEST(DuringThePull, AnOverlayThatGrowsBeyondItsThresholdIsWarnedOf) {
  if (::geteuid() != 0)
    GTEST_SKIP() << "mounting a small file system needs root";
  const SmallFileSystem small("8M");
  Machine machine({{.name = "vda"}});
  Points points(machine);
  machine.write(machine.disks()[0], "write -P 1 0 1M");
  points.remember("0001-full");
  HeldBackup backup(points, {"--overlay-dir", small.path()});
  machine.write(machine.disks()[0], "write -P 2 512k 7M");
  const Outcome outcome = backup.release();
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("vda: the overlay " + small.path() + "/nbdelta-"));
  EXPECT_THAT(outcome.err, HasSubstr("has grown beyond 6."));
  const json::value result = json::parse(outcome.out);
  const json::array warnings = result.at("warnings").as_array();
  ASSERT_EQ(warnings.size(), 1U) << outcome.out;
  EXPECT_THAT(std::string(warnings[0].as_string()), HasSubstr("make room"));
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  EXPECT_EQ(type_of(points.backup()), "incremental");
  points.check();
}

TEST(DuringTheCommit, AnOverlayThatGrowsBeyondItsThresholdIsWarnedOfToo) {
  if (::geteuid() != 0)
    GTEST_SKIP() << "mounting a small file system needs root";
  const SmallFileSystem small("8M");
  Machine machine({{.name = "vda"}});
  Points points(machine);
  const Command options{"--quiesce", "no", "--overlay-dir", small.path()};
  const Outcome outcome = watched(machine, points, "backup", options,
                                  [&](QmpTap& /*tap*/, const json::object& command) {
                                    if (command.at("execute") == "block-commit")
                                      machine.write(machine.disks()[0], "write -P 2 512k 7M");
                                  });
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("has grown beyond 6."));
  EXPECT_THAT(machine.leftovers(), IsEmpty());
}

TEST(DuringThePull, AnOverlayThatStaysBelowItsThresholdIsNot) {
  Machine machine({{.name = "vda"}});
  Points points(machine);
  machine.write(machine.disks()[0], "write -P 1 0 1M");
  HeldBackup backup(points);
  machine.write(machine.disks()[0], "write -P 2 512k 7M");
  const Outcome outcome = backup.release();
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(json::parse(outcome.out).at("warnings").as_array().size(), 0U) << outcome.out;
}

struct Quit {
  std::string format;
  std::string tracking;
  std::string next;  // type of the backup after it
};

class QemuQuits : public ::testing::TestWithParam<Quit> {};

TEST_P(QemuQuits, TheRestorePointIsGoodAndTheOverlayIsPutRight) {
  const Quit& row = GetParam();
  const bool by_overlay = row.tracking == "overlay";
  const Command tracking{"--tracking", row.tracking};
  Random random = Random::from_environment();
  Machine machine({{.name = "vda", .format = row.format}});
  Points points(machine);
  machine.write_at_random(random, 10);
  points.backup(tracking);
  machine.write_at_random(random, 5);
  points.remember("0002-incremental");
  HeldBackup backup(points, tracking);
  machine.write_at_random(random, 10);
  machine.quit();
  const Outcome outcome = backup.release();
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("the guest has shut down; what was frozen is still"));
  EXPECT_THAT(outcome.err, HasSubstr("restore point 0002-incremental is complete, but the guest "
                                     "could not be put back as it was"));
  EXPECT_THAT(outcome.err, HasSubstr("'nbdelta recover', with --offline"));
  points.check();

  const std::string image = machine.image(machine.disks()[0]);
  EXPECT_EQ(run(nbdelta_command({"check-start", image})).status, 3);
  if (!by_overlay) {
    const Outcome recovered = run(recover_offline(points, image));
    EXPECT_EQ(recovered.status, 0) << recovered.err;
    EXPECT_THAT(recovered.err, HasSubstr("ended the session 2"));
    EXPECT_EQ(run(nbdelta_command({"check-start", image})).status, 0);
    EXPECT_EQ(difference(image, row.format, machine.model(machine.disks()[0]), "raw"), "");
  }
  machine.start();  // by overlay: on the one that nbdelta-current names
  machine.write_at_random(random, 5);
  const json::value next = points.backup(tracking);
  EXPECT_EQ(type_of(next), row.next) << next;
  EXPECT_EQ(next.at("number").as_int64(), 3);
  machine.write_at_random(random, 5);
  EXPECT_EQ(type_of(points.backup(tracking)), "incremental");
  points.check();
  if (!by_overlay) {
    EXPECT_THAT(machine.leftovers(), IsEmpty());
  }
}

INSTANTIATE_TEST_SUITE_P(DuringThePull, QemuQuits,
                         ::testing::Values(Quit{"qcow2", "bitmap", "incremental"},
                                           Quit{"raw", "bitmap", "full"},  // was in QEMU's memory
                                           Quit{"qcow2", "overlay", "incremental"},
                                           Quit{"raw", "overlay", "incremental"}),
                         [](const auto& row) { return row.param.format + row.param.tracking; });

/// The guest switches itself off, and its QEMU stays.
TEST(DuringThePull, AGuestThatShutsDownIsPutBackAsItWas) {
  Random random = Random::from_environment();
  Machine machine({{.name = "vda"}}, {"-no-shutdown"});
  Points points(machine);
  points.backup();
  machine.write_at_random(random, 5);
  points.remember("0002-incremental");
  HeldBackup backup(points);
  machine.write_at_random(random, 5);
  wait_until([&] {
    // PM1a_CNT (ACPI) with SLP_EN, S5: where the firmware of QEMU's PC puts it.
    machine.command("human-monitor-command", {{"command-line", "o /w 0x604 0x2000"}});
    return machine.command("query-status").at("status") == "shutdown";
  });
  const Outcome outcome = backup.release();
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("the guest has shut down; what was frozen is still"));
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  EXPECT_EQ(type_of(points.backup()), "incremental");
  points.check();
  machine.quit();
  EXPECT_EQ(difference(machine.image(machine.disks()[0]), "qcow2",
                       machine.model(machine.disks()[0]), "raw"),
            "");
}

/// A guest without an operating system lets go of a device when it is reset.
void unplug(Machine& machine, const MachineDisk& disk) {
  machine.command("device_del", {{"id", disk.name}});
  machine.command("system_reset");
  wait_until([&] {
    const json::value devices = machine.command("query-block");
    return json::serialize(devices).find("/" + disk.name + "/") == std::string::npos;
  });
}

class Unplugged : public ::testing::TestWithParam<bool> {};

TEST_P(Unplugged, TheOverlayOfADiskIsKept) {
  Random random = Random::from_environment();
  Machine machine({{.name = "vda"}, {.name = "vdb", .by_drive = GetParam()}});
  Points points(machine);
  const MachineDisk& gone = machine.disks()[1];
  const std::string image = machine.image(gone);
  points.backup();
  machine.write_at_random(random, 10);
  points.remember("0002-incremental");
  HeldBackup backup(points);
  machine.write_at_random(random, 10);
  machine.write(gone, "write -P 77 3M 64k");
  unplug(machine, gone);
  const Outcome outcome = backup.release();
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("restore point 0002-incremental is complete, but"));
  EXPECT_THAT(outcome.err, HasSubstr("holds what the guest wrote, and no disk runs on it"));
  EXPECT_THAT(outcome.err, HasSubstr("'nbdelta recover --offline " + image));
  points.check();
  machine.write(machine.disks()[0], "write -P 78 3M 64k");  // the other one is as it was

  // It stays so, however often it is asked; nothing is said of a guest that was started wrongly.
  for (const char* name : {"recover", "recover", "backup"}) {
    const Outcome again = run(points.command(name));
    EXPECT_EQ(again.status, 1) << name;
    EXPECT_THAT(again.err, HasSubstr("no disk runs on it; it is left")) << name;
    EXPECT_THAT(again.err, Not(HasSubstr("was started without"))) << name;
  }
  EXPECT_EQ(machine.leftovers().size(), 2U);
  if (!gone.by_drive) {  // QEMU has the image open until somebody takes that away too
    EXPECT_NE(run(recover_offline(points, image)).status, 0);
    EXPECT_EQ(machine.leftovers().size(), 2U);
    machine.command("blockdev-del", {{"node-name", gone.name}});
  }
  const Outcome recovered = run(recover_offline(points, image));
  EXPECT_EQ(recovered.status, 0) << recovered.err;
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  EXPECT_EQ(difference(image, "qcow2", machine.model(gone), "raw"), "");
  const json::value next = json::parse(run_ok(points.command("backup", {"--json"})));
  EXPECT_EQ(next.at("disks").as_array().size(), 1U);
  EXPECT_EQ(type_of(next), "incremental");
}

INSTANTIATE_TEST_SUITE_P(DuringThePull, Unplugged, ::testing::Bool(), [](const auto& row) {
  return std::string(row.param ? "drive" : "blockdev");
});

}  // namespace
}  // namespace nbdelta::testing
