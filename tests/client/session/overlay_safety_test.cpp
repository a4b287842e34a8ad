#include <fmt/format.h>
#include <unistd.h>

#include <boost/json/serialize.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/client/session/small_file_system.hpp"
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

/// "Beside each image": what the guest runs on does not say where the next overlay goes.
TEST_F(StackElsewhere, GoesOnBesideItsImageWithoutTheFolder) {
  points_.backup(joined(in_folder_, {"--tracking", "overlay"}));
  machine_.write(disk_, "write -P 76 1M 64k");
  run_ok(points_.command("begin", {"--quiesce", "no", "--tracking", "overlay"}));
  machine_.write(disk_, "write -P 77 2M 64k");
  EXPECT_THAT(machine_.leftovers(), ::testing::Contains(::testing::EndsWith("-0002-vda.qcow2")));
  machine_.kill();
  expect_found_and_committed();
}

/// The documented way out of tracking by overlay.
TEST(OverlaysThatAreFull, AreLeftForTheImagesOwnFolder) {
  if (::geteuid() != 0)
    GTEST_SKIP() << "mounting a small file system needs root";
  const SmallFileSystem small("1500K");
  Machine machine({{.name = "vda"}});
  Points points(machine);
  machine.write(machine.disks()[0], "write -P 1 0 1M");
  points.backup({"--tracking", "overlay", "--overlay-dir", small.path()});
  machine.write(machine.disks()[0], "write -P 2 1M 512k");
  run({"sh", "-c", "cat /dev/zero > " + small.path() + "/fill"});
  EXPECT_EQ(type_of(points.backup({"--tracking", "bitmap"})), "incremental");
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  points.check();
}

/// A guest that was copied with its repository: both copies know the same sessions.
TEST_F(StackElsewhere, IsLeftAloneWhereAnotherQemuRunsOnIt) {
  points_.backup(in_folder_);
  begin(points_, in_folder_);
  {
    Machine copy({{.name = "vda", .size = 64 << 20}});
    Points points(copy);
    fs::copy(points_.repository(), points.repository(), fs::copy_options::recursive);
    EXPECT_EQ(run(points.command("recover", in_folder_)).status, 3);
    // Where it had been begun at the copy's address, which tells it from nobody else's.
    const std::string journal = points.vm_folder() + "/nbdelta-session.json";
    json::object text = json::parse(text_of_file(journal)).as_object();
    text["qmp"] = copy.qmp();
    std::ofstream(journal) << text;
    const Outcome recover = run(points.command("recover", in_folder_));
    EXPECT_THAT(recover.out + recover.err, HasSubstr("somebody else has it open")) << recover.err;
    EXPECT_FALSE(fs::is_empty(overlays_.path()));
    copy.quit();
  }
  machine_.write(disk_, "write -P 78 2M 64k");
  end(points_, {"--success"});
  machine_.quit();
  EXPECT_EQ(machine_.difference_from_model(disk_), "");
  EXPECT_TRUE(fs::is_empty(overlays_.path()));
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
    // Three times before anything was touched, then when the overlays are there.
    if (command.at("execute") == "query-status" && ++asked == 4)
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

/// A session that failed and whose commit was given up: its overlay stays.
class KeptOverlay : public ::testing::Test {
 protected:
  void begin_with(const Command& more) {
    begin(points_, {"--quiesce", "no"});
    machine_.write(disk_, "write -P 5 0 48M");
    end(points_, more);
    ASSERT_FALSE(machine_.leftovers().empty());
  }
  /// Which QEMU gives the base.
  std::string base_node() {
    const json::value devices = machine_.command("query-block");
    const json::value nodes = machine_.command("query-named-block-nodes");
    const json::value& image = devices.at(0).at("inserted").at("image");
    const json::value& base = image.at("backing-image").at("filename");
    for (const json::value& node : nodes.as_array())
      if (node.at("file") == base && node.at("drv") == "qcow2")
        return std::string(node.at("node-name").as_string());
    return {};
  }

  Machine machine_{{{.name = "vda", .size = 64 << 20}}};
  Points points_{machine_};
  const MachineDisk& disk_ = machine_.disks().front();
};

/// There is no restore point yet that says which chain goes on.
TEST_F(KeptOverlay, OfTheFirstSessionOfAllIsNotInTheWay) {
  begin_with({"--failure", "--commit-deadline", "0"});
  begin(points_, {"--quiesce", "no"});
  end(points_, {"--success"});
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  machine_.quit();
  EXPECT_EQ(machine_.difference_from_model(disk_), "");
}

/// By hand, over QMP: the guest runs on its base then, which is newer than the overlay.
TEST_F(KeptOverlay, ThatSomebodyElseCommitsIsNotCommittedAgain) {
  begin_with({"--success", "--commit-deadline", "0"});
  const std::string top(
      machine_.command("query-block").at(0).at("inserted").at("node-name").as_string());
  machine_.command("block-commit",
                   {{"job-id", "by-hand"}, {"device", top}, {"base-node", base_node()}});
  const auto is_over = [&] { return machine_.command("query-block-jobs").as_array().empty(); };
  for (int i = 0; i < 600 && !is_over(); ++i) {
    machine_.command("block-job-complete", {{"device", "by-hand"}});
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  ASSERT_TRUE(is_over());
  machine_.write(disk_, "write -P 9 1M 1M");
  const Outcome recover = run(points_.command("recover"));
  EXPECT_EQ(recover.status, 0) << recover.err;
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  machine_.quit();
  EXPECT_EQ(run(nbdelta_command({"check-start", machine_.image(disk_)})).status, 0);
  EXPECT_EQ(machine_.difference_from_model(disk_), "");
}

/// Its overlay is committed with qemu-img; what has changed since the last restore point is in two
/// bitmaps then.
TEST(OfflineRecovery, OfAnOpenSessionLeavesWhatTheNextIncrementalNeeds) {
  Machine machine({{.name = "vda"}});
  Points points(machine);
  const MachineDisk& disk = machine.disks().front();
  const Command plain{"--quiesce", "no"};
  begin(points, plain);
  end(points, {"--success"});
  machine.write(disk, "write -P 1 1M 64k");
  begin(points, plain);
  machine.write(disk, "write -P 2 2M 64k");
  machine.write(disk, "flush");
  machine.kill();
  for (int i = 0; i < 2; ++i) {
    const Outcome recover = run(points.offline_recovery(machine.image(disk)));
    EXPECT_EQ(recover.status, 0) << recover.err;
  }
  machine.start();
  machine.write(disk, "write -P 3 3M 64k");
  const json::value begun = json::parse(run_ok(points.command("begin", {"--quiesce", "no"})));
  const json::value& exported = begun.at("disks").at(0);
  EXPECT_EQ(exported.at("type"), "incremental") << begun;
  const std::string uri(exported.at("uri").as_string());
  const std::string base = machine.folder() + "/base.raw";
  const std::string copy = machine.folder() + "/copy.qcow2";
  run_ok({"truncate", "-s", std::to_string(disk.size), base});  // the first copy: all zero
  run_ok({"qemu-img", "convert", "-O", "qcow2", "-B", base, "-F", "raw", uri, copy});
  EXPECT_EQ(difference(copy, "qcow2", machine.model(disk), "raw"), "");
  end(points, {"--success"});
  const json::value node = machine.command("query-block").at(0).at("inserted");
  EXPECT_EQ(node.at("dirty-bitmaps").as_array().size(), 1U) << node;
}

}  // namespace
}  // namespace nbdelta::testing
