#include "sim/explore_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.hpp"
#include "sim/explore.hpp"
#include "sim/seed.hpp"
#include "sim/work_progress.hpp"

namespace nbdelta::sim {
namespace {

struct ExploreOptions {
  std::string seeds = "1..1000";
  std::optional<std::string> seed;  // else all of `seeds`
  unsigned jobs = 1;
  bool shrink = false;
  std::optional<std::string> record;  // a file
};

std::pair<std::uint64_t, std::uint64_t> parse_seeds(const std::string& text) {
  constexpr const char* kOption = "--seeds";
  const std::string_view view = text;
  const std::size_t dots = view.find("..");
  const std::uint64_t first = parse_seed(kOption, view.substr(0, dots));
  const std::uint64_t last =
      dots == std::string_view::npos ? first : parse_seed(kOption, view.substr(dots + 2));
  if (last < first)
    fail(EINVAL, "{}: '{}' ends before it begins", kOption, text);
  return {first, last};
}

WorkProgress progress_of(std::uint64_t first, std::uint64_t last) {
  return {last - first + 1, "seeds"};
}

void add_sessions(Run& run, std::uint64_t seed, const Schedule& schedule,
                  RunRecorder::Detail detail) {
  for (RunSession& session : record_schedule(schedule, detail)) {
    session.name = fmt::format("seed {}, {}", seed, session.name);
    run.sessions.push_back(std::move(session));
  }
}

/// All of the first seeds, of the others the windows and the faults.
void record_seeds(const std::string& file, std::uint64_t first, std::uint64_t last) {
  WorkProgress progress = progress_of(first, last);
  constexpr std::uint64_t kInDetail = 10;
  Run run;
  run.name = "explore";
  run.seed = first;
  for (std::uint64_t seed = first; seed <= last; ++seed) {
    add_sessions(run, seed, Schedule::of_seed(seed),
                 seed - first < kInDetail ? RunRecorder::Detail::all : RunRecorder::Detail::window);
    progress.done();
  }
  write_run(file, run);
}

/// Returns whether nothing is wrong.
bool print_seed(const Schedule& schedule) {
  const Explored explored = explore(schedule, true);
  fmt::print("{}", schedule.text());
  for (const std::string& line : explored.log)
    fmt::print("{}\n", line);
  fmt::print("{}\n", explored.violation ? "VIOLATION: " + *explored.violation : "nothing is wrong");
  return !explored.violation;
}

ExploreResult explore_all(std::uint64_t first, std::uint64_t last, unsigned jobs) {
  constexpr std::size_t kMostFailures = 20;
  WorkProgress progress = progress_of(first, last);
  return explore_seeds(first, last, jobs, kMostFailures, [&progress] { progress.done(); });
}

int replay(const ExploreOptions& options) {
  const std::uint64_t seed = parse_seed("--seed", *options.seed);
  Schedule schedule = Schedule::of_seed(seed);
  if (options.shrink)
    schedule = shrink(schedule);
  const bool good = print_seed(schedule);
  if (options.record) {
    Run run;
    run.name = "explore";
    run.seed = seed;
    add_sessions(run, seed, schedule, RunRecorder::Detail::all);
    write_run(*options.record, run);
  }
  return good ? 0 : 1;
}

int run_explore(const ExploreOptions& options) {
  if (options.record)
    check_run_place(*options.record);
  if (options.seed)
    return replay(options);
  const auto [first, last] = parse_seeds(options.seeds);
  if (options.record)
    record_seeds(*options.record, first, last);
  const ExploreResult result = explore_all(first, last, options.jobs);
  for (const auto& [what, count] : result.seen)
    fmt::print("{:8} {}\n", count, what);
  const auto distinct = [&](std::string_view kind) {
    return std::count_if(result.seen.begin(), result.seen.end(),
                         [&](const auto& seen) { return seen.first.starts_with(kind); });
  };
  const auto points = distinct("kill ");
  const auto faults = distinct("fault: ");
  fmt::print(
      "{} schedules, {} steps; {} distinct crash points, {} faults, {} states; {:.0f} schedules a "
      "second\n",
      result.schedules, result.steps, points, faults,
      static_cast<std::ptrdiff_t>(result.seen.size()) - points - faults,
      static_cast<double>(result.schedules) / result.seconds);
  for (const std::uint64_t seed : result.failed) {
    const Schedule schedule = Schedule::of_seed(seed);
    fmt::print("seed {} fails: {}\n{}", seed, explore(schedule).violation.value_or("?"),
               schedule.text());
  }
  return result.failed.empty() ? 0 : 1;
}

}  // namespace

std::function<int()> add_explore_command(CLI::App& app) {
  const auto options = std::make_shared<ExploreOptions>();
  CLI::App* command = app.add_subcommand("explore", "Drives backups through faults and crashes");
  CLI::Option* seeds =
      command->add_option("--seeds", options->seeds, "A..B")->capture_default_str();
  CLI::Option* seed =
      command->add_option("--seed", options->seed, "Replays one, with its log")->excludes(seeds);
  command->add_option("--jobs", options->jobs, "Threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_flag("--shrink", options->shrink, "Leaves away what the violation does not need")
      ->needs(seed);
  command->add_option("--record", options->record, "Writes down what happened, for the report")
      ->type_name("FILE");
  return [options] { return run_explore(*options); };
}

}  // namespace nbdelta::sim
