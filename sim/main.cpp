#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <string>

#include "client/say.hpp"
#include "sim/explore.hpp"
#include "sim/forecast_command.hpp"
#include "sim/gate_command.hpp"
#include "sim/report_command.hpp"
#include "sim/run_command.hpp"

namespace {

using namespace nbdelta::sim;

struct ExploreOptions {
  std::string seeds = "1..1000";
  std::uint64_t seed = 0;
  unsigned jobs = 1;
  bool shrink = false;
  std::string record;  // a file; empty: none
};

/// All of the first seeds, of the others the windows and the faults.
void record_seeds(const std::string& file, std::uint64_t first, std::uint64_t last) {
  constexpr std::uint64_t kInDetail = 10;
  Run run;
  run.name = "explore";
  run.seed = first;
  for (std::uint64_t seed = first; seed <= last; ++seed)
    for (RunSession& session :
         record_seed(seed, seed - first < kInDetail ? RunRecorder::Detail::all
                                                    : RunRecorder::Detail::window)) {
      session.name = fmt::format("seed {}, {}", seed, session.name);
      run.sessions.push_back(std::move(session));
    }
  write_run(file, run);
}

void print_seed(const Schedule& schedule) {
  const Explored explored = explore(schedule, true);
  fmt::print("{}", schedule.text());
  for (const std::string& line : explored.log)
    fmt::print("{}\n", line);
  fmt::print("{}\n", explored.violation ? "VIOLATION: " + *explored.violation : "nothing is wrong");
}

int run_explore(const ExploreOptions& options) {
  if (options.seed != 0) {
    Schedule schedule = Schedule::of_seed(options.seed);
    if (options.shrink)
      schedule = shrink(schedule);
    print_seed(schedule);
    if (!options.record.empty())
      record_seeds(options.record, options.seed, options.seed);
    return explore(schedule).violation ? 1 : 0;
  }
  const std::size_t dots = options.seeds.find("..");
  const std::uint64_t first = std::stoull(options.seeds.substr(0, dots));
  const std::uint64_t last =
      dots == std::string::npos ? first : std::stoull(options.seeds.substr(dots + 2));
  if (!options.record.empty())
    record_seeds(options.record, first, last);
  const ExploreResult result = explore_seeds(first, last, options.jobs, 20);
  for (const auto& [what, count] : result.seen)
    fmt::print("{:8} {}\n", count, what);
  const auto distinct = [&](std::string_view kind) {
    return std::count_if(result.seen.begin(), result.seen.end(),
                         [&](const auto& seen) { return seen.first.starts_with(kind); });
  };
  const auto points = distinct("killed at: ");
  const auto faults = distinct("fault: ");
  fmt::print(
      "{} schedules, {} steps; {} distinct crash points, {} faults, {} states; {:.0f} schedules a "
      "second\n",
      result.schedules, result.steps, points, faults,
      static_cast<std::ptrdiff_t>(result.seen.size()) - points - faults,
      static_cast<double>(result.schedules) / result.seconds);
  for (const std::uint64_t seed : result.failed) {
    const Schedule schedule = Schedule::of_seed(seed);
    fmt::print("seed {} fails: {}\n", seed, explore(schedule).violation.value_or("?"));
  }
  return result.failed.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Stands in for QEMU, its guest agent and its guest");
  app.require_subcommand(1);
  ExploreOptions options;
  CLI::App* explore = app.add_subcommand("explore", "Drives backups through faults and crashes");
  explore->add_option("--seeds", options.seeds, "A..B");
  explore->add_option("--seed", options.seed, "Replays one, with its log");
  explore->add_option("--jobs", options.jobs, "Threads");
  explore->add_flag("--shrink", options.shrink, "Leaves away what the violation does not need");
  explore->add_option("--record", options.record, "Writes down what happened, for the report");
  const std::map<std::string, std::function<int()>> others{{"run", add_run_command(app)},
                                                           {"forecast", add_forecast_command(app)},
                                                           {"gate", add_gate_command(app)},
                                                           {"report", add_report_command(app)},
                                                           {"check", add_check_command(app)}};
  CLI11_PARSE(app, argc, argv);
  try {
    const auto other = others.find(app.get_subcommands().front()->get_name());
    return other == others.end() ? run_explore(options) : other->second();
  } catch (const std::exception& error) {
    nbdelta::client::say("nbdelta-sim: {}\n", error.what());
    return 1;
  }
}
