#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "tests/sim/live.hpp"
#include "tests/support/process.hpp"
#include "tests/support/temp_folder.hpp"

/// What nbdelta-sim says about what it is given.
namespace nbdelta::testing {
namespace {

using ::testing::HasSubstr;

constexpr const char* kIdle = R"({"disks": [{"name": "vda", "size": "1 MiB"}]})";

/// stderr of what must fail with status 1.
std::string refusal(const Command& more) {
  Command words{NBDELTA_SIM};
  words.insert(words.end(), more.begin(), more.end());
  const Outcome outcome = run(words);
  EXPECT_EQ(outcome.status, 1) << outcome.out;
  return outcome.err;
}

TEST(SimCommands, AnIntervalHasLimits) {
  for (const char* interval : {"0 s", "999 ms", "25 h", "100000 h"})
    EXPECT_EQ(
        refusal({"forecast", "--interval", interval}),
        fmt::format("nbdelta-sim: --interval: '{}' is out of range: 1 s to 24 h\n", interval));
  for (const char* interval : {"-1 s", "10", "soon"}) {
    const std::string said = refusal({"forecast", std::string("--interval=") + interval});
    EXPECT_THAT(said, HasSubstr(fmt::format("--interval: '{}' is not a time", interval)));
    EXPECT_THAT(said, HasSubstr("allowed are 1 s to 24 h"));
  }
  EXPECT_THAT(refusal({"forecast", "--commit-deadline", "0 s"}),
              HasSubstr("--commit-deadline: '0 s' is out of range: 1 s to 24 h"));
  run_ok({NBDELTA_SIM, "forecast", "--runs", "1", "--pattern", "idle", "--disk-size", "1 MiB",
          "--interval", "1 s"});
}

TEST(SimCommands, AForecastGivesUpWhenNbdeltaWould) {
  const std::string table =
      run_ok({NBDELTA_SIM, "forecast", "--runs", "2", "--write-rate", "unlimited", "--disk-size",
              "64 MiB", "--storage", "20 MiB/s", "--commit-deadline", "2 s"});
  EXPECT_THAT(table, HasSubstr("2 of 2 commits did not end"));
}

/// On no terminal: stderr has errors alone.
TEST(SimCommands, ProgressIsForTerminals) {
  const Outcome explored = run({NBDELTA_SIM, "explore", "--seeds", "1..40"});
  EXPECT_EQ(explored.status, 0);
  EXPECT_EQ(explored.err, "");
}

TEST(SimCommands, AFolderInPlaceOfAFileIsNamed) {
  const TempFolder folder;
  const std::string there = folder / "there";
  std::filesystem::create_directory(there);
  std::ofstream(folder / "idle.json") << kIdle;
  const std::string scenario = folder / "idle.json";
  const struct {
    const char* name;
    Command command;
  } kCases[] = {
      {"a scenario", {"forecast", "--scenario", there}},
      {"a scenario of run", {"run", "--scenario", there, "--dir", folder / "guest"}},
      {"a scenario of gate", {"gate", there}},
      {"a run", {"report", there, "--to", folder / "report"}},
      {"a record of forecast",
       {"forecast", "--scenario", scenario, "--runs", "1", "--record", there}},
      {"a record of run",
       {"run", "--scenario", scenario, "--dir", folder / "guest", "--record", there}},
      {"a record of explore", {"explore", "--seeds", "1..1", "--record", there}},
      {"a gate's table", {"gate", scenario, "--runs", "1", "--json", there}},
  };
  for (const auto& each : kCases) {
    SCOPED_TRACE(each.name);
    EXPECT_THAT(refusal(each.command), HasSubstr(there + ": "));
  }
}

TEST(SimCommands, AGateSaysThatNothingWasMeasured) {
  const TempFolder folder;
  std::ofstream(folder / "idle.json") << kIdle;
  for (const std::string& measured : {folder / "gone", folder / "idle.json"})
    EXPECT_EQ(refusal({"gate", folder / "idle.json", "--runs", "1", "--measured", measured}),
              fmt::format("nbdelta-sim: --measured: {}: is no folder\n", measured));
  EXPECT_THAT(run_ok({NBDELTA_SIM, "gate", folder / "idle.json", "--runs", "1", "--measured",
                      folder.path()}),
              HasSubstr("idle"));
}

/// Before anything is run, so that nothing is run in vain.
TEST(SimCommands, ARecordThatCannotBeWrittenIsToldAtTheStart) {
  const TempFolder folder;
  std::ofstream(folder / "idle.json") << kIdle;
  const std::string scenario = folder / "idle.json";
  const std::string gone = folder / "gone";
  const std::string file = gone + "/f.run.json";
  const struct {
    const char* name;
    Command command;
    std::string place;
  } kCases[] = {
      {"run", {"run", "--scenario", scenario, "--dir", folder / "guest", "--record", file}, file},
      {"forecast", {"forecast", "--scenario", scenario, "--record", file}, file},
      {"explore", {"explore", "--record", file}, file},
      {"explore of a seed", {"explore", "--seed", "1", "--record", file}, file},
      {"gate", {"gate", scenario, "--record", gone}, gone + "/idle.run.json"},
      {"gate's table", {"gate", scenario, "--json", file}, file},
  };
  for (const auto& each : kCases) {
    SCOPED_TRACE(each.name);
    Command words{NBDELTA_SIM};
    words.insert(words.end(), each.command.begin(), each.command.end());
    const Outcome refused = run(words);
    EXPECT_EQ(refused.status, 1);
    EXPECT_EQ(refused.out, "");
    EXPECT_EQ(
        refused.err,
        fmt::format("nbdelta-sim: {}: cannot be written: No such file or directory\n", each.place));
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "guest"));
}

TEST(SimCommands, ARecordThatCouldBeWrittenIsNotTouchedAtTheStart) {
  const TempFolder folder;
  const std::string file = folder / "f.run.json";
  std::ofstream(file) << "kept";
  const LiveSim sim(kIdle, {"--record", file});
  std::ifstream in(file);
  EXPECT_EQ((std::string{std::istreambuf_iterator<char>(in), {}}), "kept");
  EXPECT_FALSE(std::filesystem::exists(file + ".new"));
}

TEST(SimCommands, AForecastSaysWhatItCannotTake) {
  EXPECT_EQ(refusal({"forecast", "--scenario", ""}),
            "nbdelta-sim: --scenario is empty: expected a scenario's file\n");
  for (const char* pattern : {"foo", "trace", ""})
    EXPECT_EQ(refusal({"forecast", "--pattern", pattern}),
              fmt::format("nbdelta-sim: --pattern: '{}' is not known: expected one of sequential, "
                          "uniform, zipf, database, idle\n",
                          pattern));
}

/// The options become a scenario that nobody has seen.
TEST(SimCommands, AForecastNamesTheOption) {
  const struct {
    Command option;
    const char* said;
  } kCases[] = {
      {{"--storage", "8 MB/s"}, "--storage: '8 MB/s' is not a rate"},
      {{"--write-rate", "5 MB/s"}, "--write-rate: '5 MB/s' is not a rate"},
      {{"--write-rate", "5 MB/s", "--disks", "3"}, "--write-rate: '5 MB/s' is not a rate"},
      {{"--write-rate", "0 B/s"}, "--write-rate: "},
      {{"--latency", "soon"}, "--latency: 'soon' is not a time"},
      {{"--flush-latency", "2 min"}, "--flush-latency: '2 min' is out of range"},
      {{"--disk-size", "1 KiB"}, "--disk-size: '1 KiB' is out of range"},
      {{"--disk-size", "600 GiB", "--disks", "2"}, "--disk-size: expected at most 1 TiB in all"},
  };
  for (const auto& each : kCases) {
    Command words{"forecast", "--runs", "1"};
    words.insert(words.end(), each.option.begin(), each.option.end());
    EXPECT_THAT(refusal(words), ::testing::StartsWith("nbdelta-sim: " + std::string(each.said)));
  }
}

TEST(SimCommands, AForecastCountsWhatIsNotFrozen) {
  const TempFolder folder;
  std::ofstream(folder / "slow.json")
      << R"({"disks": [{"name": "vda", "size": "1 MiB"}], "agent": {"freeze": "20 s", "jitter": 0}})";
  EXPECT_THAT(run_ok({NBDELTA_SIM, "forecast", "--scenario", folder / "slow.json", "--runs", "1"}),
              HasSubstr("6 of 6 backups were not made. The first: the guest cannot be frozen"));
}

TEST(SimCommands, ARecordHasAPath) {
  const TempFolder folder;
  std::ofstream(folder / "idle.json") << kIdle;
  const std::string scenario = folder / "idle.json";
  for (const Command& command :
       {Command{"forecast", "--record", ""}, Command{"explore", "--record", ""},
        Command{"run", "--scenario", scenario, "--dir", folder / "guest", "--record", ""}})
    EXPECT_EQ(refusal(command), "nbdelta-sim: the path of the record is empty\n");
}

TEST(SimCommands, AGuestsFolderIsAFolder) {
  const TempFolder folder;
  std::ofstream(folder / "idle.json") << kIdle;
  for (const char* place : {"/dev/null", "/dev/null/guest", ""})
    EXPECT_THAT(refusal({"run", "--scenario", folder / "idle.json", "--dir", place}),
                HasSubstr(fmt::format("--dir '{}' is no folder", place)));
}

/// The second disk cannot be opened: the first one's new image goes again, what was there stays.
TEST(SimCommands, AGuestThatIsRefusedLeavesNoImages) {
  const TempFolder folder;
  std::ofstream(folder / "two.json")
      << R"({"disks": [{"name": "vda", "size": "1 MiB", "backing": true},
                       {"name": "vdb", "size": "1 MiB", "format": "raw"}]})";
  std::filesystem::create_directory(folder / "guest");
  std::ofstream(folder / "guest/vdb.raw") << "not a MiB";
  EXPECT_THAT(refusal({"run", "--scenario", folder / "two.json", "--dir", folder / "guest"}),
              HasSubstr("vdb.raw"));
  std::set<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "guest"))
    left.insert(entry.path().filename());
  EXPECT_EQ(left, std::set<std::string>{"vdb.raw"});
}

TEST(SimCommands, SaysWhatIsNoSeed) {
  const auto no_seed = [](const char* option, const char* text) {
    return fmt::format(
        "nbdelta-sim: {}: '{}' is no seed: expected a number from 0 to 18446744073709551614\n",
        option, text);
  };
  for (const char* command : {"explore", "forecast"})
    for (const char* seed : {"-1", "18446744073709551615", "99999999999999999999", "1x", "0x10"})
      EXPECT_EQ(refusal({command, std::string("--seed=") + seed}), no_seed("--seed", seed))
          << command;
  EXPECT_EQ(refusal({"explore", "--seed", "-1"}), no_seed("--seed", "-1"));
  EXPECT_EQ(refusal({"explore", "--seeds", "3..18446744073709551615"}),
            no_seed("--seeds", "18446744073709551615"));
  EXPECT_EQ(refusal({"explore", "--seeds", "-1..3"}), no_seed("--seeds", "-1"));
  EXPECT_EQ(refusal({"explore", "--seeds", "3.."}), no_seed("--seeds", ""));
  EXPECT_EQ(refusal({"explore", "--seeds", "3..1"}),
            "nbdelta-sim: --seeds: '3..1' ends before it begins\n");
  run_ok({NBDELTA_SIM, "explore", "--seeds", "18446744073709551614..18446744073709551614"});
}

TEST(SimCommands, AForecastsSeedIsDecimal) {
  const auto with = [](const char* seed) {
    return run_ok({NBDELTA_SIM, "forecast", "--runs", "1", "--pattern", "idle", "--disk-size",
                   "1 MiB", "--interval", "1 s", "--json", "--seed", seed});
  };
  EXPECT_EQ(with("010"), with("10"));
  EXPECT_NE(with("010"), with("8"));
  EXPECT_NE(with("0"), with("1"));
}

TEST(SimCommands, AnImageThatCannotBeOpenedIsNamed) {
  const TempFolder folder;
  std::ofstream(folder / "idle.json") << kIdle;
  const std::string guest = folder / "guest";
  const std::string image = guest + "/vda.qcow2";
  const Command run_it{"run", "--scenario", folder / "idle.json", "--dir", guest};
  std::filesystem::create_directory(guest);

  std::ofstream(image).flush();
  EXPECT_EQ(refusal(run_it), fmt::format("nbdelta-sim: {}: Image is not in qcow2 format\n", image));
  std::filesystem::remove(image);
  std::filesystem::create_directory(image);
  EXPECT_THAT(refusal(run_it), HasSubstr(image));
  std::filesystem::remove(image);
  std::ofstream(folder / "file").flush();
  EXPECT_THAT(refusal({"run", "--scenario", folder / "idle.json", "--dir", folder / "file"}),
              HasSubstr(folder / "file"));
}

TEST(SimCommands, AnImageThatAnotherProcessHasIsNamed) {
  LiveSim sim(kIdle);
  const std::string image = sim.image("vda.qcow2");
  const Outcome second = run(sim.run_command());
  EXPECT_EQ(second.status, 1);
  EXPECT_THAT(second.err, HasSubstr(image + ": "));
  EXPECT_THAT(second.err, HasSubstr("lock"));
}

TEST(SimCommands, WhatIsNoImageIsNamedByTheCheck) {
  LiveSim sim(kIdle);
  const TempFolder folder;
  const std::string there = folder / "there.qcow2";
  std::filesystem::create_directory(there);
  std::ofstream(folder / "empty.qcow2").flush();
  for (const std::string& image : {there, folder / "empty.qcow2"}) {
    const Outcome outcome = sim.check({"vda=" + image});
    EXPECT_EQ(outcome.status, 1);
    EXPECT_THAT(outcome.err, HasSubstr(image + ": "));
  }
}

/// An earlier one had more sessions.
TEST(SimCommands, AReportLeavesNoPicturesOfAnother) {
  const TempFolder folder;
  const std::string file = folder / "f.run.json";
  const std::string report = folder / "report";
  run_ok({NBDELTA_SIM, "forecast", "--runs", "1", "--pattern", "idle", "--disk-size", "1 MiB",
          "--interval", "1 s", "--record", file});
  std::filesystem::create_directory(report);
  std::ofstream(report + "/mine.svg").flush();
  const auto pictures = [&] {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(report))
      names.insert(entry.path().filename());
    return names;
  };
  run_ok({NBDELTA_SIM, "report", file, "--to", report});
  EXPECT_TRUE(pictures().contains("session-6-window.svg"));
  run_ok({NBDELTA_SIM, "report", file, "--to", report, "--details", "1"});
  EXPECT_EQ(pictures(),
            (std::set<std::string>{"budget.svg", "mine.svg", "report.html", "session-1.svg",
                                   "session-1-window.svg", "windows.svg"}));
}

}  // namespace
}  // namespace nbdelta::testing
