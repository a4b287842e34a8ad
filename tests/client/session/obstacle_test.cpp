#include "tests/client/session/session_test.hpp"

/// What keeps an overlay from being committed, though nothing is broken: it is said, nothing is
/// lost, and overlays do not pile up.
namespace nbdelta::testing {
namespace {

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
  machine.write(disk, "write -P 5 0 48M");
  const Outcome given_up =
      run(points.command("backup", {"--quiesce", "no", "--commit-deadline", "0"}));
  ASSERT_EQ(given_up.status, 0) << given_up.err;
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

INSTANTIATE_TEST_SUITE_P(By, NamelessBase, ::testing::Bool(), [](const auto& row) {
  return std::string(row.param ? "drive" : "blockdev");
});

}  // namespace
}  // namespace nbdelta::testing
