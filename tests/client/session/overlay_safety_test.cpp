#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "tests/client/session/watched.hpp"

/// An overlay that holds the guest's writes is found wherever it is, is what the guest starts on
/// next, and is never taken for one that nobody needs.
namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

const Command kByOverlay{"--quiesce", "no", "--tracking", "overlay"};

void begin(const Points& points, const Command& more) {
  run_ok(points.command("begin", more));
}
void end(const Points& points, const Command& how) {
  run_ok(points.command("end", how));
}

/// In another folder, over others there.
class StackElsewhere : public ::testing::Test {
 protected:
  /// QEMU has ended: the base cannot be started, and gets what the overlays have.
  void expect_found_and_committed() {
    const std::string image = machine_.image(disk_);
    EXPECT_EQ(run(nbdelta_command({"check-start", image})).status, 3);
    const Outcome recover = run(points_.offline_recovery(image));
    EXPECT_EQ(recover.status, 0) << recover.err;
    EXPECT_EQ(difference(image, "qcow2", machine_.model(disk_), "raw"), "");
    EXPECT_EQ(run(nbdelta_command({"check-start", image})).status, 0);
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    EXPECT_TRUE(fs::is_empty(overlays_.path()));
  }

  const TempFolder overlays_;
  const Command in_folder_{"--overlay-dir", overlays_.path()};
  Machine machine_{{{.name = "vda", .size = 64 << 20}}};
  Points points_{machine_};
  const MachineDisk& disk_ = machine_.disks().front();
};

TEST_F(StackElsewhere, OfTrackingByOverlayIsFoundFromItsBase) {
  Command words = in_folder_;
  words.insert(words.end(), {"--tracking", "overlay"});
  points_.backup(words);
  points_.backup(words);  // the first overlay is committed and goes, the second lay over it
  machine_.write(disk_, "write -P 77 1M 64k");
  machine_.quit();
  expect_found_and_committed();
}

TEST_F(StackElsewhere, AfterACommitThatDidNotCatchUpIsFoundFromItsBase) {
  begin(points_, in_folder_);
  end(points_, {"--success"});
  begin(points_, in_folder_);
  machine_.write(disk_, "write -P 5 0 48M");
  end(points_, {"--success", "--commit-deadline", "0"});
  begin(points_, in_folder_);
  machine_.write(disk_, "write -P 77 50M 64k");
  machine_.write(disk_, "flush");
  machine_.kill();
  expect_found_and_committed();
}

/// Somebody's file where the overlay would be.
class ExistingFile : public ::testing::TestWithParam<bool> {};

TEST_P(ExistingFile, IsRefusedAndSurvives) {
  const TempFolder elsewhere;
  Machine machine({{.name = "vda"}});
  Points points(machine);
  const json::value first = points.backup();
  const std::string file =
      fmt::format("{}/nbdelta-{}-0002-vda.qcow2", GetParam() ? elsewhere.path() : machine.folder(),
                  first.at("chain").as_string().c_str());
  std::ofstream(file) << "precious";
  machine.write(machine.disks().front(), "write -P 1 1M 64k");
  const Command words = GetParam() ? Command{"--overlay-dir", elsewhere.path()} : Command();
  const Outcome outcome = run(points.command("backup", words));
  EXPECT_EQ(outcome.status, 3);
  EXPECT_THAT(outcome.err, HasSubstr(file));
  EXPECT_EQ(text_of_file(file), "precious");
  EXPECT_EQ(points.phase(), "no journal");
  fs::remove(file);
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  EXPECT_EQ(type_of(points.backup(words)), "incremental");
  points.check();
}

INSTANTIATE_TEST_SUITE_P(InFolder, ExistingFile, ::testing::Bool(), [](const auto& row) {
  return std::string(row.param ? "OfOverlays" : "OfTheImage");
});

/// The guest was started on the overlay below its last one; the next session has the number of the
/// one that failed.
TEST(ExistingOverlay, OfAFailedSessionSurvivesTheNext) {
  Machine machine({{.name = "vda"}});
  Points points(machine);
  const MachineDisk& disk = machine.disks().front();
  begin(points, kByOverlay);
  end(points, {"--success"});
  const std::string lower = machine.current(disk);
  begin(points, kByOverlay);
  end(points, {"--failure"});
  const std::string upper = machine.current(disk);
  ASSERT_NE(upper, lower);
  machine.write(disk, "write -P 77 1M 64k");
  machine.quit();
  std::ofstream(machine.folder() + "/nbdelta-current-vda.qcow2") << lower << "\n";
  machine.start();
  const Outcome next = run(points.command("begin", kByOverlay));
  EXPECT_NE(next.status, 0);
  EXPECT_THAT(next.err, HasSubstr(upper));
  machine.quit();
  ASSERT_TRUE(fs::exists(upper)) << next.err;
  EXPECT_EQ(difference(upper, "qcow2", machine.model(disk), "raw"), "");
}

/// Its session died before the switch, but there it was, and was named.
TEST(PreparedOverlay, ThatAGuestWasStartedOnSurvivesTheRecoveryOfAnotherDisk) {
  Machine machine({{.name = "vda"}, {.name = "vdb", .format = "raw"}});
  Points points(machine);
  int asked = 0;
  watched(machine, points, "backup", kByOverlay, [&](QmpTap& tap, const json::object& command) {
    // First before anything was touched, then when the overlays are there.
    if (command.at("execute") == "query-status" && ++asked == 2)
      tap.kill_client();
  });
  ASSERT_EQ(points.phase(), "prepare");
  machine.quit();
  machine.start();
  for (const MachineDisk& disk : machine.disks()) {
    ASSERT_NE(machine.current(disk), machine.image(disk));
    machine.write(disk, "write -P 77 1M 64k");
  }
  machine.quit();
  for (const MachineDisk& disk : machine.disks()) {
    const std::string overlay = machine.current(disk);
    EXPECT_EQ(difference(overlay, "qcow2", machine.model(disk), "raw"), "") << disk.name;
    run(points.offline_recovery(machine.image(disk)));
    EXPECT_FALSE(fs::exists(overlay)) << disk.name;
    EXPECT_EQ(difference(machine.image(disk), disk.format, machine.model(disk), "raw"), "")
        << disk.name;
  }
  EXPECT_EQ(points.phase(), "no journal");
}

/// nbdelta dies before any of the commands that bring the guest from its overlay to its base: what
/// is named for the next start is what it runs on, or nothing.
TEST(CurrentOverlay, IsNeverOneThatWasCommitted) {
  Machine machine({{.name = "vda"}});
  Points points(machine);
  const MachineDisk& disk = machine.disks().front();
  begin(points, {"--quiesce", "no"});
  end(points, {"--success"});
  bool was_there = true;
  for (int i = 0; was_there; ++i) {
    begin(points, kByOverlay);
    machine.write(disk, fmt::format("write -P {} 1M 64k", i + 1));
    Nth nth(i);
    std::string name;
    watched(machine, points, "end", {"--failure"}, [&](QmpTap& tap, const json::object& command) {
      if (!nth())
        return;
      name = command.at("execute").as_string();
      tap.kill_client();
    });
    was_there = nth.was_there();
    const json::value top = machine.command("query-block").at(0).at("inserted");
    if (machine.current(disk) != machine.image(disk)) {
      EXPECT_EQ(machine.current(disk), std::string(top.at("file").as_string()))
          << "died before " << name;
    }
    run_ok(points.command("recover"));
    EXPECT_THAT(machine.leftovers(), IsEmpty()) << "died before " << name;
  }
  machine.quit();
  EXPECT_EQ(machine.difference_from_model(disk), "");
}

}  // namespace
}  // namespace nbdelta::testing
