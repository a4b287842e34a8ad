#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>

#include "base/error.hpp"
#include "sim/explore.hpp"
#include "sim/forecast.hpp"
#include "sim/report_page.hpp"
#include "sim/run_figures.hpp"
#include "sim/run_pictures.hpp"
#include "tests/support/environment_variable.hpp"
#include "tests/support/process.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::sim {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using namespace std::chrono_literals;

const std::string kOddName = R"(v'm <b>&"`x`")";

RunSession session_of(std::int64_t window_us) {
  RunSession made;
  made.name = kOddName;
  made.result = kResultDone;
  made.end_us = window_us + 5'000'000;
  const auto add = [&](std::string_view to, const char* name, std::int64_t start,
                       std::int64_t end) {
    RunCommand& command = made.commands.emplace_back();
    command.to = to;
    command.name = name;
    command.start_us = start;
    command.end_us = end;
  };
  add(kToQemu, "query-block", 10, 90);
  add(kToAgent, "guest-fsfreeze-freeze", 1000, 1000 + window_us - 300);
  add(kToQemu, "transaction", 1000 + window_us - 290, 1000 + window_us - 200);
  made.commands.back().snapshots = 1;
  add(kToAgent, "guest-fsfreeze-thaw", 1000 + window_us - 100, 1000 + window_us);
  add(kToQemu, "block-commit", window_us + 3'000'000, window_us + 3'000'100);
  add(kToQemu, "blockdev-del", window_us + 4'000'000, window_us + 4'000'100);
  made.frozen = {{900 + window_us, 1000 + window_us}};
  made.latency = {{0, 10, 500, 2000}, {1000, 2, window_us / 2, window_us}};
  made.overlay = {{2000, 0}, {window_us + 2'000'000, 3 << 20}, {window_us + 4'000'100, 0}};
  made.pulled = {{window_us + 1'000'000, 1 << 20}, {window_us + 2'000'000, 9 << 20}};
  return made;
}

Run run_of(std::vector<RunSession> sessions) {
  sim::Run run;
  run.name = kOddName;
  run.sessions = std::move(sessions);
  return run;
}

/// The files by name, all of which must be XML.
std::map<std::string, std::string> report(const std::vector<Run>& runs, std::size_t details) {
  const testing::TempFolder folder;
  std::map<std::string, std::string> texts;
  testing::Command parse{"python3", "-c",
                         "import sys, xml.etree.ElementTree as tree\n"
                         "for file in sys.argv[1:]: tree.parse(file)"};
  for (const ReportFile& file : make_report(runs, details)) {
    texts[file.name] = file.text;
    std::ofstream(folder / file.name) << file.text;
    parse.push_back(folder / file.name);
  }
  testing::run_ok(parse);
  return texts;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++found;
  return found;
}

TEST(Report, OfOneSession) {
  const auto files = report({run_of({session_of(50'000)})}, 6);
  EXPECT_EQ(files.size(), 4U);  // the page, the budget, the timeline, the window
  const std::string& page = files.at("report.html");
  EXPECT_THAT(page, HasSubstr("v&#39;m &lt;b&gt;&amp;&quot;`x`&quot;"));
  EXPECT_THAT(page, Not(HasSubstr(kOddName)));
  EXPECT_THAT(page, HasSubstr("name=\"viewport\""));
  EXPECT_THAT(page, HasSubstr("prefers-color-scheme: dark"));
  EXPECT_THAT(page, HasSubstr("Freeze window 50.0 ms"));
  EXPECT_THAT(page, HasSubstr("9.00 MiB were pulled"));
  EXPECT_EQ(count(page, "<svg"), 3U);
  EXPECT_THAT(page, Not(HasSubstr("http-equiv")));
  EXPECT_THAT(page, Not(HasSubstr(" src=")));  // self-contained
}

TEST(Report, ShowsTheStatesInTheirOrder) {
  const auto files = report({run_of({session_of(50'000)})}, 6);
  const std::string& timeline = files.at("session-1.svg");
  std::size_t before = 0;
  for (const std::string state : {"prepare", "freeze", "switch", "thaw", "export", "pull", "commit",
                                  "rotate", "to agent", "to QEMU"}) {
    const std::size_t at = timeline.find(">" + state + "<");
    ASSERT_NE(at, std::string::npos) << state;
    EXPECT_GT(at, before) << state;
    before = at;
  }
  for (const char* title : {"Requests, ms", "Overlays, MiB", "Pull, MiB/s", "s since the session"})
    EXPECT_THAT(timeline, HasSubstr(title));
  EXPECT_THAT(files.at("session-1-window.svg"), HasSubstr(">49.7 ms<"));
}

TEST(Report, TheMeansLineBreaksWhereNoRequestWasSent) {
  RunSession session = session_of(50'000);
  session.latency = {{0, 1, 500, 2000},         {10'000, 1, 600, 2000},   {20'000, 1, 700, 2000},
                     {40'000, 1, 800, 2000},  // a pause of a step is not seen
                     {3'000'000, 1, 900, 2000}, {3'010'000, 1, 950, 2000}};
  EXPECT_THAT(draw_timeline("it", session).script,
              HasSubstr("$latency << EOD\n"
                        "0 2 0.5\n0.01 2 0.6\n0.02 2 0.7\n0.04 2 0.8\n0.05 NaN 0.8\n"
                        "\n"
                        "3 2 0.9\n3.01 2 0.95\nEOD\n"));
}

/// Each colour is a plain one, which a rule of the same file makes fit a dark page.
TEST(Report, HasColoursForThoseWhoKnowNoCss) {
  const std::regex attribute(R"((fill|stroke|color)\s*=\s*["']([^"']*)["'])");
  for (const auto& [name, text] : report({run_of({session_of(50'000), session_of(60'000)})}, 6)) {
    const std::size_t drawing = text.find("</style>");
    ASSERT_NE(drawing, std::string::npos) << name;
    const std::string rules = text.substr(0, drawing);
    std::set<std::string> colours;
    for (auto it = std::sregex_iterator(text.begin() + static_cast<std::ptrdiff_t>(drawing),
                                        text.end(), attribute);
         it != std::sregex_iterator(); ++it) {
      const std::string value = (*it)[2];
      if (!value.starts_with('#') || value == "#ffffff")
        continue;  // gnuplot's, which nothing shows, or the paper's
      const std::string rule = (*it)[1].str() + "=\"" + value + "\"] {";
      EXPECT_THAT(rules, HasSubstr(rule)) << name;
      colours.insert(value);
    }
    EXPECT_GE(colours.size(), 3U) << name;
    EXPECT_EQ(count(text, "=\"var(") + count(text, "='var("), 0U) << name;
  }
}

TEST(Report, NoTwoThingsHaveOneId) {
  const std::string page =
      report({run_of({session_of(50'000), session_of(60'000)})}, 6)["report.html"];
  const testing::TempFolder folder;
  std::ofstream(folder / "p.html") << page;
  EXPECT_EQ(
      testing::run_ok({"python3", "-c",
                       "import re, sys\n"
                       "ids = re.findall(r'id=[\"\\']([^\"\\']+)', open(sys.argv[1]).read())\n"
                       "doubles = {i for i in ids if ids.count(i) > 1 and 'canvas' not in i}\n"
                       "print(len(ids) > 20, sorted(doubles))",
                       folder / "p.html"}),
      "True []\n");
}

TEST(Report, OfAThousandRuns) {
  std::vector<sim::Run> runs;
  for (std::int64_t i = 0; i < 1000; ++i)
    runs.push_back(run_of({session_of(50'000 + i * 10)}));
  const auto files = report(runs, 6);
  const std::string& page = files.at("report.html");
  EXPECT_THAT(page, HasSubstr("1000 sessions in 1000 files"));
  EXPECT_THAT(page, HasSubstr("994 sessions more"));
  EXPECT_EQ(files.size(), 1U + 2 + 2 * 6);
  EXPECT_LT(page.size(), 2U << 20);
  // Nearest ranks of 50.00 to 59.99 ms.
  EXPECT_THAT(page,
              HasSubstr("<td class=\"number\">55.0 ms</td><td class=\"number\">59.5 ms</td>"
                        "<td class=\"number\">59.9 ms</td><td class=\"number\">60.0 ms</td>"));
  EXPECT_EQ(report(runs, 0).size(), 3U);
}

TEST(Report, OfNothing) {
  EXPECT_THROW(make_report({}, 6), Error);
  EXPECT_THROW(make_report({run_of({})}, 6), Error);
  // A session that ended at once, without a command.
  RunSession empty;
  empty.name = "e";
  EXPECT_THAT(report({run_of({empty})}, 6)["report.html"],
              HasSubstr("No session came to its switch"));
}

TEST(Report, OfFaults) {
  std::vector<RunSession> sessions{session_of(50'000), session_of(50'000)};
  sessions[0].result = "QEMU is gone";
  sessions[0].faults = {{20'000, "kill <QEMU>'\nsystem('touch /tmp/x')`touch /tmp/x`"}};
  sessions[0].frozen = {{1000, 20'001'000}};
  const auto files = report({run_of(sessions)}, 6);
  const std::string& page = files.at("report.html");
  EXPECT_THAT(page, HasSubstr("Not done: QEMU is gone"));
  EXPECT_THAT(page, HasSubstr("The guest was frozen for 20.0 s"));
  EXPECT_THAT(page, HasSubstr("after 20.0 ms, in freeze</li>"));
  EXPECT_THAT(page, HasSubstr("1 came to their end, 1 did not"));
  EXPECT_THAT(files.at("faults.svg"), HasSubstr("kill &lt;QEMU>' system('touch /tmp/x')`touch"));
  EXPECT_EQ(count(files.at("faults.svg"), "color='#b0123f'"), 1U);
}

TEST(Report, WindowsOfAllLengths) {
  EXPECT_FALSE(wants_powers({50, 60, 1000}));
  EXPECT_TRUE(wants_powers({50, 60, 20'000}));
  EXPECT_THAT(report({run_of({session_of(2000), session_of(20'000'000)})}, 0)["windows.svg"],
              HasSubstr(">10000<"));
}

TEST(Report, SaysWhatIsMissing) {
  const testing::EnvironmentVariable path("PATH", "/nonexistent");
  try {
    make_report({run_of({session_of(50'000)})}, 6);
    ADD_FAILURE() << "it was drawn";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("gnuplot-nox"));
  }
}

TEST(Report, KnowsItsPictures) {
  for (const auto& [name, text] : report({run_of({session_of(50'000), session_of(60'000)})}, 6))
    EXPECT_EQ(is_picture_of_report(name), name != "report.html") << name;
  EXPECT_TRUE(is_picture_of_report("faults.svg"));
  EXPECT_TRUE(is_picture_of_report("session-100-window.svg"));
  for (const char* name : {"session.svg", "session-1.svg.bak", "my-session-1.svg", "session-x.svg"})
    EXPECT_FALSE(is_picture_of_report(name)) << name;
}

// ---- What is recorded ----

void expect_as_the_schema_says(const Run& run) {
  const testing::TempFolder folder;
  write_run(folder / "r.json", run);
  const std::string source = NBDELTA_SOURCE;
  testing::run_ok({source + "/tests/client/session/check-manifests",
                   source + "/docs/run.schema.json", folder / "r.json"});
  EXPECT_EQ(read_run(folder / "r.json").sessions.size(), run.sessions.size());
}

TEST(Recorded, ForecastsAreWhatTheyFound) {
  Scenario scenario;
  scenario.name = "test";
  scenario.disks.push_back({.name = "disk", .size = 16U << 20});
  scenario.guest.storage.throughput = 64U << 20;
  LoadSetup load;
  load.pattern = Pattern::sequential;
  load.request = 64U << 10;
  load.rate = 16U << 20;
  load.direct = true;
  scenario.guest.loads = {{0, load}};
  scenario.guest.cache.expire = 1s;
  scenario.duration = 2s;
  sim::Run run;
  const Forecast forecast =
      sim::forecast(scenario, {.runs = 2, .incrementals = 2, .threads = 2, .record = &run});
  expect_as_the_schema_says(run);
  ASSERT_EQ(run.sessions.size(), 6U);
  std::vector<double> lengths;
  for (const RunSession& each : run.sessions) {
    const auto window = window_of(each);
    ASSERT_TRUE(window) << each.name;
    lengths.push_back(static_cast<double>(window->length_us()) / 1000);
    EXPECT_EQ(window->own_us(), 6 * 20);  // messages between processes, see Rehearsal
    EXPECT_EQ(each.result, kResultDone);
    EXPECT_EQ(each.frozen.size(), 1U);
  }
  // nbdelta's own clock sees a message at each end too.
  EXPECT_NEAR(spread_of(lengths).median + 0.04, forecast.window.median, 0.002);
  EXPECT_NEAR(spread_of(lengths).largest + 0.04, forecast.window.largest, 0.002);

  const RunSession& full = run.sessions[0];
  EXPECT_EQ(full.name, "guest 1, backup 1");
  ASSERT_FALSE(full.pulled.empty() || full.overlay.empty());
  EXPECT_EQ(full.pulled.back().bytes, 16U << 20);
  EXPECT_EQ(states_of(full).size(), 8U);
  std::uint64_t overlay = 0;
  for (const RunAmount& each : full.overlay)
    overlay = std::max(overlay, each.bytes);
  EXPECT_GT(overlay, 0U);
  EXPECT_LE(static_cast<double>(overlay), forecast.full_overlay.largest);
  EXPECT_EQ(full.overlay.back().bytes, 0U);
  // A request waited for the freeze; each was counted once.
  EXPECT_GT(longest_request_us(full), window_of(full)->freeze_us / 2);
  std::uint64_t requests = 0;
  for (const RunLatency& each : full.latency)
    requests += each.requests;
  const double seconds = static_cast<double>(full.end_us - full.start_us) / 1e6;
  EXPECT_NEAR(static_cast<double>(requests), seconds * 256, seconds * 256 * 0.5);
  // Of the second guest the windows alone.
  EXPECT_EQ(run.sessions[3].commands.size(), 3U);
  EXPECT_TRUE(run.sessions[3].overlay.empty());
  EXPECT_LE(run.sessions[3].latency.size(), 1U);
}

TEST(Recorded, ExploredSeedsSayWhatTheirFaultsDid) {
  sim::Run run;
  std::set<std::string> results;
  std::size_t frozen = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed)
    for (RunSession& each :
         record_schedule(Schedule::of_seed(seed),
                         seed < 30 ? RunRecorder::Detail::all : RunRecorder::Detail::window)) {
      EXPECT_TRUE(each.result) << seed;
      results.insert(each.result.value_or(""));
      frozen += each.frozen.size();
      run.sessions.push_back(std::move(each));
    }
  expect_as_the_schema_says(run);
  EXPECT_TRUE(results.count(std::string(kResultDone)));
  EXPECT_TRUE(results.count("nbdelta was killed"));
  EXPECT_GT(results.size(), 5U);
  EXPECT_GT(frozen, 30U);
  const std::vector<FaultEffect> effects = effects_of({run});
  EXPECT_GT(effects.size(), 10U);
  for (const FaultEffect& effect : effects)
    if (effect.name == "hung freeze") {
      EXPECT_GT(effect.longest_frozen_us, 1'000'000);
    }
  report({run}, 3);
}

TEST(Recorded, SeriesStayShort) {
  client::Clock::Time now{};
  RunRecorder recorder([&now] { return now; });
  recorder.begin_session("s", RunRecorder::Detail::all);
  for (int i = 0; i < 100'000; ++i) {
    now += 1ms;
    recorder.completed({0, Request::Kind::write, now, std::chrono::microseconds(i)});
    recorder.overlay(static_cast<std::uint64_t>(i));
    recorder.pulled(10);
  }
  recorder.end_session(std::nullopt);
  const RunSession& made = recorder.run().sessions.at(0);
  EXPECT_LE(made.latency.size(), kMostEntries);
  EXPECT_GT(made.latency.size(), kMostEntries / 2 - 1);
  EXPECT_LE(made.overlay.size(), kMostEntries);
  EXPECT_EQ(made.overlay.back().bytes, 99'999U);
  EXPECT_EQ(made.pulled.back().bytes, 1'000'000U);
  EXPECT_EQ(longest_request_us(made), 99'999);
  std::uint64_t requests = 0;
  for (const RunLatency& each : made.latency)
    requests += each.requests;
  EXPECT_EQ(requests, 100'000U);
}

}  // namespace
}  // namespace nbdelta::sim
