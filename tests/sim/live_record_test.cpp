#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <string>
#include <thread>

#include "tests/sim/live.hpp"

namespace nbdelta::testing {
namespace {

namespace json = boost::json;

const std::string kScenario = R"({
  "disks": [{"name": "vda", "size": "64 MiB"}],
  "agent": {"freeze": "300 ms", "jitter": 0},
  "loads": [{"disk": "vda", "pattern": "uniform", "rate": "2 MiB/s", "sync-every": 16}]
})";

json::value file_json(const std::string& path) {
  std::ifstream in(path);
  return json::parse(std::string{std::istreambuf_iterator<char>(in), {}});
}

std::int64_t time_of(const json::value& session, const std::string& command, const char* which) {
  for (const json::value& each : session.at("commands").as_array())
    if (each.at("name") == json::value(command))
      return each.at(which).to_number<std::int64_t>();
  ADD_FAILURE() << command << " was not recorded";
  return 0;
}

/// Which is written once the simulator has seen that its client has left.
json::value recorded(const std::string& file, std::size_t sessions) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  json::value run = file_json(file);
  while (run.at("sessions").as_array().size() < sessions &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    run = file_json(file);
  }
  return run;
}

/// What is recorded of a backup agrees with what nbdelta says of it, and is drawn.
TEST(LiveRecord, IsWhatNbdeltaSaw) {
  const TempFolder folder;
  const std::string file = folder / "live.run.json";
  LiveSim sim(kScenario, {"--record", file});
  const json::value first = sim.backup();
  run_ok(sim.connected("backup", {"--dry-run"}));  // changes nothing: no session
  sim.backup();
  const json::value run = recorded(file, 2);
  EXPECT_EQ(run.at("time"), json::value("real"));
  ASSERT_EQ(run.at("sessions").as_array().size(), 2U);
  const json::value& session = run.at("sessions").at(0);

  const json::value& window = first.at("window");
  const std::int64_t theirs = window.at("thaw-answered-us").to_number<std::int64_t>() -
                              window.at("freeze-sent-us").to_number<std::int64_t>();
  const std::int64_t ours = time_of(session, "guest-fsfreeze-thaw", "end-us") -
                            time_of(session, "guest-fsfreeze-freeze", "start-us");
  EXPECT_GE(ours, 300'000);  // what the agent takes at least
  EXPECT_LE(ours, theirs);   // nbdelta sends before, and hears after
  EXPECT_EQ(session.at("frozen").as_array().size(), 1U);
  EXPECT_FALSE(session.at("latency").as_array().empty());
  EXPECT_FALSE(session.at("overlay").as_array().empty());
  EXPECT_TRUE(session.at("pulled").as_array().empty());

  run_ok({NBDELTA_SOURCE "/tests/client/session/check-manifests",
          NBDELTA_SOURCE "/docs/run.schema.json", file});
  const std::string manifest = sim.points() + "/0001-full/manifest.json";
  run_ok({NBDELTA_SIM, "report", file, manifest, "--to", folder / "report"});
  std::ifstream in(folder / "report/report.html");
  const std::string page{std::istreambuf_iterator<char>(in), {}};
  EXPECT_THAT(page, ::testing::HasSubstr("3 sessions in 2 files"));
  EXPECT_THAT(page, ::testing::HasSubstr(">copy<"));
}

}  // namespace
}  // namespace nbdelta::testing
