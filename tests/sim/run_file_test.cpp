#include "sim/run_file.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "base/error.hpp"
#include "client/json_text.hpp"
#include "sim/run_figures.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::sim {
namespace {

const std::string kSession = R"("name": "a", "start-us": 10, "end-us": 90, "frozen": [],
    "latency": [], "overlay": [], "pulled": [], "faults": [])";

std::string run_text(const std::string& session) {
  return R"({"run-version": 1, "name": "x", "time": "virtual", "sessions": [{)" + session + "}]}";
}

std::string with(const std::string& list, const std::string& content) {
  std::string session = kSession;
  const std::string empty = "\"" + list + "\": []";
  session.replace(session.find(empty), empty.size(), "\"" + list + "\": [" + content + "]");
  return run_text(session + R"(, "commands": [])");
}

std::string refusal_of(const std::string& text) {
  try {
    parse_run(text, "r.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "it was taken";
}

TEST(RunFile, ComesBackAsItWasWritten) {
  sim::Run run;
  run.name = "a <b> & \"c\" ü";
  run.time = kReal;
  run.seed = UINT64_MAX;
  RunSession& session = run.sessions.emplace_back();
  session.name = "s";
  session.result = "it\nfailed";
  session.start_us = 5;
  session.end_us = 100;
  session.commands.resize(2);
  session.commands[0].to = kToAgent;
  session.commands[0].name = "x";
  session.commands[0].end_us = 7;
  session.commands[1].to = kToQemu;
  session.commands[1].name = "transaction";
  session.commands[1].start_us = 8;
  session.commands[1].error = "no";
  session.commands[1].snapshots = 3;
  session.frozen = {{10, 20}};
  session.latency = {{11, 2, 3, 4}};
  session.overlay = {{12, 1 << 20}};
  session.pulled = {{13, 7}, {14, UINT64_MAX}};
  session.faults = {{15, "kill QEMU"}};
  const testing::TempFolder folder;
  write_run(folder / "r.json", run);
  const sim::Run again = read_run(folder / "r.json");
  EXPECT_EQ(qapi::to_json(again), qapi::to_json(run));
  EXPECT_EQ(again.sessions.at(0).commands.at(1).snapshots, 3U);
  write_run(folder / "r.json", sim::Run());
  EXPECT_TRUE(read_run(folder / "r.json").sessions.empty());
}

TEST(RunFile, SaysWhatIsWrongWhere) {
  const std::string good = run_text(kSession + R"(, "commands": [])");
  EXPECT_EQ(parse_run(good, "r.json").sessions.size(), 1U);
  struct Row {
    std::string text;
    const char* refusal;
  };
  const Row rows[] = {
      {"", "r.json:1:1: is not JSON: it ends too early"},
      {"{\n\"run-version\": 1,\n x}", "r.json:3:2: is not JSON"},
      {good + "1", "is not JSON: something follows it"},
      {"[]", "r.json: is neither a run of nbdelta-sim nor a manifest of nbdelta"},
      {"{}", "r.json: is neither a run of nbdelta-sim nor a manifest of nbdelta"},
      {R"({"run-version": 2})", "r.json: run.run-version is 2, not 1"},
      {R"({"run-version": "1"})", "r.json: run.run-version is not a number"},
      {R"({"run-version": 1, "name": 1})", "r.json: run.name is not a string"},
      {R"({"run-version": 1, "name": "", "time": "now", "sessions": []})",
       "r.json: run.time is 'now', not virtual or real"},
      {run_text(kSession), "r.json: run.sessions[0].commands is missing"},
      {run_text(R"("name": "a", "start-us": -1, "end-us": 9, "commands": [], "frozen": [],
         "latency": [], "overlay": [], "pulled": [], "faults": [])"),
       "r.json: run.sessions[0].start-us is -1, not 0 to"},
      {with("frozen", R"({"start-us": 8, "end-us": 7})"),
       "sessions[0].frozen[0].end-us is 7, not 8"},
      {with("frozen", R"({"start-us": 1, "end-us": 9e30})"), "frozen[0].end-us is not a number"},
      {with("faults", R"({"at-us": 9007199254740993, "name": ""})"),
       "faults[0].at-us is 9007199254740993, not 0 to 9007199254740992"},
      {with("faults", R"({"at-us": 2, "name": ""}, {"at-us": 1, "name": ""})"),
       "faults[1].at-us is 1, not 2 to"},
      {with("latency", R"({"start-us": 1, "requests": 1, "mean-us": 5, "longest-us": 4})"),
       "latency[0].longest-us is 4, not 5 to"},
      {with("overlay", R"({"at-us": 1, "bytes": -1})"), "overlay[0].bytes is not a number from 0"},
      {with("pulled", R"({"at-us": 1, "bytes": 2}, {"at-us": 1, "bytes": 1})"),
       "pulled[1].bytes is less than before"},
      {run_text(kSession + R"(, "commands": [{"to": "me", "name": "", "start-us": 1}])"),
       "commands[0].to is 'me', not qemu or agent"},
      {run_text(kSession +
                R"(, "commands": [{"to": "qemu", "name": "", "start-us": 5, "end-us": 4}])"),
       "commands[0].end-us is 4, not 5 to"},
  };
  for (const Row& row : rows)
    EXPECT_NE(refusal_of(row.text).find(row.refusal), std::string::npos) << row.text << "\n"
                                                                         << refusal_of(row.text);
  EXPECT_THROW(read_run("/nowhere/r.json"), Error);
}

TEST(RunFile, TakesAManifest) {
  client::repository::Manifest manifest;
  manifest.vm = "vm1";
  manifest.number = 7;
  manifest.type = "incremental";
  manifest.window = {.freeze_sent_us = 1'000'000'000,
                     .freeze_answered_us = 1'000'050'000,
                     .switch_sent_us = 1'000'050'100,
                     .switch_answered_us = 1'000'053'100,
                     .thaw_sent_us = 1'000'053'200,
                     .thaw_answered_us = 1'000'060'000};
  manifest.disks.resize(2);
  const sim::Run run = parse_run(client::to_json_text(manifest), "manifest.json");
  EXPECT_EQ(run.name, "vm1");
  EXPECT_EQ(run.time, kReal);
  ASSERT_EQ(run.sessions.size(), 1U);
  EXPECT_EQ(run.sessions[0].name, "0007-incremental");
  const auto window = window_of(run.sessions[0]);
  ASSERT_TRUE(window);
  EXPECT_EQ(window->length_us(), manifest.window.length_us());
  EXPECT_EQ(window->agent_us(), manifest.window.agent_us());
  EXPECT_EQ(window->switch_us, manifest.window.switch_us());
  EXPECT_EQ(window->own_us(), 200);

  manifest.window.switch_answered_us = 1;
  EXPECT_NE(refusal_of(client::to_json_text(manifest)).find("commands[1].end-us is -"),
            std::string::npos);
  manifest.window = {.freeze_sent_us = std::nullopt,
                     .freeze_answered_us = std::nullopt,
                     .switch_sent_us = 5,
                     .switch_answered_us = 9,
                     .thaw_sent_us = std::nullopt,
                     .thaw_answered_us = std::nullopt};
  const sim::Run crash = parse_run(client::to_json_text(manifest), "manifest.json");
  EXPECT_EQ(window_of(crash.sessions.at(0))->length_us(), 4);
  manifest.manifest_version = 9;
  EXPECT_NE(refusal_of(client::to_json_text(manifest)).find("manifest-version is 9, not 1"),
            std::string::npos);
}

}  // namespace
}  // namespace nbdelta::sim
