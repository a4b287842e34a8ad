#include "tests/sim/live.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <set>
#include <string>

#include "tests/support/random.hpp"

/// nbdelta as it is, nbdkit and the plugin, on the fake guest as a process.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
namespace json = boost::json;

constexpr const char* kOneDisk = R"({
  "disks": [{"name": "vda", "size": "64 MiB"}],
  "loads": [{"pattern": "uniform", "rate": "4 MiB/s", "zeros": 0.1, "sync-every": 16}]})";
constexpr const char* kRaw = R"({
  "disks": [{"name": "vda", "size": "64 MiB", "format": "raw"}],
  "loads": [{"pattern": "zipf", "rate": "4 MiB/s", "zeros": 0.1, "sync-every": 16}]})";
constexpr const char* kThreeDisks = R"({
  "qemu": {"version": "10.0"},
  "disks": [{"name": "vda", "size": "64 MiB"},
            {"name": "vdb", "size": "32 MiB", "format": "raw"},
            {"name": "vdc", "size": "32 MiB", "backing": true, "by-drive": true}],
  "loads": [{"disk": "vda", "pattern": "database", "rate": "2 MiB/s"},
            {"disk": "vdb", "pattern": "sequential", "rate": "2 MiB/s", "zeros": 0.2},
            {"disk": "vdc", "pattern": "uniform", "rate": "2 MiB/s", "discards": 0.2}]})";

struct Setup {
  const char* name;
  const char* scenario;
  const char* tracking;
};

class Backups : public ::testing::TestWithParam<Setup> {
 protected:
  Command tracking(const Command& more = {}) const {
    Command words{"--tracking", GetParam().tracking};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  bool by_overlay() const { return std::string(GetParam().tracking) == "overlay"; }

  /// All disks, as `nbdelta recover --offline` and the check want them.
  std::vector<std::pair<std::string, std::string>> images() const {
    std::vector<std::pair<std::string, std::string>> found;
    for (const char* name : {"vda.qcow2", "vda.raw", "vdb.raw", "vdc.qcow2"})
      if (std::filesystem::exists(sim_.image(name)))
        found.emplace_back(std::string(name, 3), sim_.image(name));
    return found;
  }

  LiveSim sim_{GetParam().scenario};
};

TEST_P(Backups, EveryRestorePointIsExact) {
  for (int i = 0; i < 4; ++i) {
    sim_.wait_for_writes(100);
    const json::value manifest = sim_.backup(tracking());
    for (const json::value& disk : manifest.at("disks").as_array())
      EXPECT_EQ(disk.at("type").as_string(), i == 0 ? "full" : "incremental") << disk;
    EXPECT_EQ(manifest.at("consistency").as_string(), "application");
  }
  EXPECT_EQ(sim_.wrong({sim_.points()}), "");
  EXPECT_EQ(sim_.stop().status, 0);
  EXPECT_EQ(sim_.image_complaints(), "");
  if (by_overlay())
    return;
  for (const auto& [disk, image] : images())
    EXPECT_THAT(sim_.check({disk + "=" + image}).out, HasSubstr("exact: the end of the record"));
}

/// What was tracked before the guest's end counts after it, but for what QEMU kept in memory.
TEST_P(Backups, AGuestThatEndsAndStartsAgainGoesOn) {
  sim_.wait_for_writes(50);
  sim_.backup(tracking());
  sim_.wait_for_writes(50);
  EXPECT_EQ(sim_.stop().status, 0);
  sim_.start();
  sim_.wait_for_writes(50);
  const json::value manifest = sim_.backup(tracking());
  for (const json::value& disk : manifest.at("disks").as_array()) {
    const bool lost = disk.at_pointer("/origin/format").as_string() == "raw" && !by_overlay();
    EXPECT_EQ(disk.at("type").as_string(), lost ? "full" : "incremental") << disk;
  }
  EXPECT_EQ(sim_.wrong({sim_.points()}), "");
}

TEST_P(Backups, AKilledGuestLosesNothingThatItFlushed) {
  Random random = Random::from_environment();
  for (int i = 0; i < 4; ++i) {
    sim_.wait_for_writes(40);
    Background nbdelta(sim_.connected("backup", tracking({"--quiet"})));
    std::this_thread::sleep_for(std::chrono::milliseconds(random.below(400)));
    sim_.kill();
    const auto outcome = nbdelta.wait(kDefaultTimeout);
    ASSERT_TRUE(outcome);
    std::cout << fmt::format("  nbdelta ended with {}: {}\n", outcome->status, outcome->err);
    Command offline;
    for (const auto& [disk, image] : images())
      offline.insert(offline.end(), {"--offline", image});
    run_ok(sim_.command("recover", offline));
    for (const auto& [disk, image] : images()) {
      if (by_overlay())
        continue;
      EXPECT_EQ(sim_.wrong({"--after-crash", disk + "=" + image}), "");
    }
    sim_.start();  // compares the images with the record itself
    sim_.backup(tracking());
    EXPECT_EQ(sim_.wrong({sim_.points()}), "");
  }
  EXPECT_EQ(sim_.stop().status, 0);
}

TEST_P(Backups, AKilledBackupIsPutRight) {
  Random random = Random::from_environment();
  sim_.backup(tracking());
  for (int i = 0; i < 4; ++i) {
    sim_.wait_for_writes(40);
    Background nbdelta(sim_.connected("backup", tracking({"--quiet"})));
    std::this_thread::sleep_for(std::chrono::milliseconds(random.below(400)));
    nbdelta.signal(SIGKILL);
    nbdelta.wait(10s);
    if (random.chance(50))
      run_ok(sim_.connected("recover"));
    const json::value manifest = sim_.backup(tracking());
    for (const json::value& disk : manifest.at("disks").as_array())
      EXPECT_EQ(disk.at("type").as_string(), "incremental") << disk;
    EXPECT_EQ(sim_.wrong({sim_.points()}), "");
  }
  EXPECT_EQ(sim_.stop().status, 0);
  EXPECT_EQ(sim_.image_complaints(), "");
}

INSTANTIATE_TEST_SUITE_P(Of, Backups,
                         ::testing::Values(Setup{"qcow2", kOneDisk, "bitmap"},
                                           Setup{"raw", kRaw, "bitmap"},
                                           Setup{"three_disks", kThreeDisks, "bitmap"},
                                           Setup{"qcow2_by_overlay", kOneDisk, "overlay"},
                                           Setup{"raw_by_overlay", kRaw, "overlay"},
                                           Setup{"three_disks_by_overlay", kThreeDisks, "overlay"}),
                         [](const auto& setup) { return setup.param.name; });

TEST(LiveSim, OtherSoftwareCopiesBetweenBeginAndEnd) {
  LiveSim sim(kOneDisk);
  std::string previous;
  for (int i = 1; i <= 3; ++i) {
    sim.wait_for_writes(50);
    const json::value begun = json::parse(run_ok(sim.connected("begin", {"--json"})));
    sim.wait_for_writes(50);
    const std::string file = sim.copy(fmt::format("{}.qcow2", i));
    Command words{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"};
    if (!previous.empty())
      words.insert(words.end(), {"-B", previous, "-F", "qcow2"});
    words.push_back(std::string(begun.at_pointer("/disks/0/uri").as_string()));
    words.push_back(file);
    run_ok(words);
    run_ok(sim.connected("end", {"--success"}));
    EXPECT_THAT(sim.check({"vda=" + file}).out, HasSubstr(fmt::format("exact: switch {},", i)));
    previous = file;
  }
}

/// A kill while nothing else is: QEMU's bitmaps cannot be trusted any more.
TEST(LiveSim, AfterAKillTheNextBackupIsFull) {
  LiveSim sim(kOneDisk);
  sim.wait_for_writes(50);
  sim.backup();
  sim.wait_for_writes(50);
  sim.kill();
  EXPECT_EQ(sim.wrong({"--after-crash", "vda=" + sim.image("vda.qcow2")}), "");
  sim.start();
  EXPECT_EQ(sim.backup().at_pointer("/disks/0/type").as_string(), "full");
  EXPECT_EQ(sim.backup().at_pointer("/disks/0/type").as_string(), "incremental");
  EXPECT_EQ(sim.wrong({sim.points()}), "");
}

TEST(LiveSim, TheCheckFindsWhatIsWrong) {
  LiveSim sim(kOneDisk);
  for (int i = 0; i < 2; ++i) {
    sim.wait_for_writes(50);
    sim.backup();
  }
  const std::string full = sim.points() + "/0001-full/vda.qcow2";
  const std::string incremental = sim.points() + "/0002-incremental/vda.qcow2";
  EXPECT_EQ(sim.wrong({sim.points()}), "");

  // Another instant is not its own.
  std::filesystem::copy_file(incremental, sim.copy("kept"));
  run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-b", full, "-F", "qcow2", incremental});
  EXPECT_THAT(sim.check({sim.points()}).out, HasSubstr("differ from switch 2; the first: vda at"));
  std::filesystem::copy_file(sim.copy("kept"), incremental,
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_EQ(sim.wrong({sim.points()}), "");

  // One byte.
  qemu_io(full, "qcow2", {"write -P 3 0x300123 1"});
  const Outcome outcome = sim.check({sim.points()});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.out,
              HasSubstr("0001-full: 1 granules differ from switch 1; the first: vda at "
                        "0x300000 has bytes that are no write's, not "));
}

/// What QEMU told a guest to be flushed is there, or it does not start.
TEST(LiveSim, DoesNotStartOnImagesThatLackWrites) {
  LiveSim sim(kOneDisk);
  sim.wait_for_writes(300);
  EXPECT_EQ(sim.stop().status, 0);
  qemu_io(sim.image("vda.qcow2"), "qcow2", {"write -z 0 64M"});
  EXPECT_EQ(sim.check({"--after-crash", "vda=" + sim.image("vda.qcow2")}).status, 1);
  try {
    sim.start();
    ADD_FAILURE() << "it has started";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("a flushed write is lost"));
  }
}

/// Its later writes are in the overlay: it says so, not that the record is wrong.
TEST(LiveSim, DoesNotStartWithoutAnOverlayThatHoldsItsWrites) {
  for (const bool crash : {true, false}) {
    SCOPED_TRACE(crash ? "killed" : "ended");
    LiveSim sim(kOneDisk);
    run_ok(sim.connected("begin"));
    sim.wait_for_writes(300);
    if (crash)
      sim.kill();
    else
      EXPECT_EQ(sim.stop().status, 0);
    const std::string image = sim.image("vda.qcow2");
    EXPECT_EQ(run({nbdelta_program(), "check-start", image}).status, 3);
    const Outcome refused = run(sim.run_command());
    EXPECT_EQ(refused.status, 1);
    EXPECT_THAT(refused.err, HasSubstr(image + ": the guest cannot be started on it: "));
    EXPECT_THAT(refused.err, HasSubstr("Run 'nbdelta recover --offline " + image + "' first"));
    run_ok(sim.command("recover", {"--offline", image}));
    sim.start();
    sim.wait_for_writes(10);
  }
}

TEST(LiveSim, TwoCannotRunOnOneFolder) {
  LiveSim sim(kOneDisk);
  const Outcome second = run(sim.run_command());
  EXPECT_EQ(second.status, 1);
  EXPECT_THAT(second.err, HasSubstr("lock"));
  sim.backup();  // the first is none the worse for it
}

/// Nothing is read by such a record, and nothing is made beside it.
TEST(LiveSim, DoesNotStartOnTheRecordOfOtherDisks) {
  const auto disks = [](const std::string& list) { return "{\"disks\": [" + list + "]}"; };
  const std::string vda = R"({"name": "vda", "size": "1 MiB"})";
  const std::string vdb = R"({"name": "vdb", "size": "2 MiB"})";
  LiveSim sim(disks(vda + "," + vdb));
  EXPECT_EQ(sim.stop().status, 0);
  const auto files = [&] {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(sim.guest()))
      names.insert(entry.path().filename());
    return names;
  };
  const std::set<std::string> before = files();
  const struct {
    const char* name;
    std::string scenario;
  } kCases[] = {
      {"another order", disks(vdb + "," + vda)},
      {"another name", disks(vda + "," + R"({"name": "vdc", "size": "2 MiB"})")},
      {"another size", disks(R"({"name": "vda", "size": "2 MiB"})" + ("," + vdb))},
      {"another format", disks(vda + R"(,{"name": "vdb", "size": "2 MiB", "format": "raw"})")},
      {"one less", disks(vda)},
      {"one more", disks(vda + "," + vdb + R"(,{"name": "vdc", "size": "2 MiB"})")},
  };
  for (const auto& each : kCases) {
    SCOPED_TRACE(each.name);
    const TempFolder folder;
    std::ofstream(folder / "other.json") << each.scenario;
    const Outcome refused =
        run({NBDELTA_SIM, "run", "--scenario", folder / "other.json", "--dir", sim.guest()});
    EXPECT_EQ(refused.status, 1);
    EXPECT_EQ(refused.err,
              fmt::format("nbdelta-sim: {}/record.txt: is the record of other disks: use a new "
                          "folder\n",
                          sim.guest()));
    EXPECT_EQ(files(), before);
  }
  sim.start();
}

/// What such a record says of the images that are there is nothing, so they cannot be what it says.
TEST(LiveSim, DoesNotStartOnARecordThatIsNone) {
  const std::string record = "/record.txt";
  LiveSim sim(kOneDisk);
  sim.wait_for_writes(50);
  EXPECT_EQ(sim.stop().status, 0);
  const auto refusal = [&](const std::string& text) {
    std::ofstream(sim.guest() + record) << text;
    const Outcome refused = run(sim.run_command());
    EXPECT_EQ(refused.status, 1) << refused.out;
    return refused.err;
  };
  EXPECT_THAT(refusal(""), HasSubstr(sim.guest() + record + ": is empty: "));
  EXPECT_THAT(refusal("notes\n"), HasSubstr(sim.guest() + record + ": is no record"));
  std::filesystem::remove(sim.guest() + record);
  sim.start();
}

TEST(LiveSim, AScenarioThatMakesNoSenseIsRefusedWithItsPlace) {
  TempFolder folder;
  std::ofstream(folder / "bad.json") << R"({"disks": [{"name": "vda", "size": "64 MB"}]})";
  const Outcome outcome =
      run({NBDELTA_SIM, "run", "--scenario", folder / "bad.json", "--dir", folder / "guest"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("bad.json:1:"));
}

}  // namespace
}  // namespace nbdelta::testing
