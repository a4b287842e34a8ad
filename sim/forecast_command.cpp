#include "sim/forecast_command.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/units.hpp"
#include "client/json_text.hpp"
#include "sim/forecast.hpp"
#include "sim/load.hpp"
#include "sim/quantity.hpp"
#include "sim/seed.hpp"
#include "sim/work_progress.hpp"

namespace nbdelta::sim {
namespace {

namespace json = boost::json;

struct ForecastArguments {
  std::optional<std::string> scenario;  // none: what the other options say
  std::string write_rate;
  std::string storage;
  std::string latency;
  std::string flush_latency;
  std::string disk_size = "4 GiB";
  std::string pattern = "uniform";
  std::string interval;
  std::string commit_deadline;
  std::uint64_t disks = 1;
  std::uint64_t runs = 20;
  std::optional<std::string> seed;  // none: the scenario's
  unsigned jobs = std::max(1U, std::thread::hardware_concurrency());
  std::optional<std::string> record;  // a file
  bool as_json = false;
};

/// There is no option for the file of a trace.
void check_pattern(const std::string& pattern) {
  std::vector<std::string_view> known = pattern_names();
  std::erase(known, pattern_names()[static_cast<std::size_t>(Pattern::trace)]);
  if (std::find(known.begin(), known.end(), pattern) == known.end())
    fail(EINVAL, "--pattern: '{}' is not known: expected one of {}", pattern,
         fmt::join(known, ", "));
}

const OptionNames kOptions{{"/storage/throughput", "--storage"},
                           {"/storage/latency", "--latency"},
                           {"/storage/flush-latency", "--flush-latency"},
                           {"/loads/0/rate", "--write-rate"},
                           {"/disks", "--disk-size"}};

/// What is no rate stays as it is: the scenario's reader says what is wrong.
std::string rate_of_each(const std::string& rate, std::uint64_t disks) {
  try {
    return fmt::format("{:.3f} B/s", static_cast<double>(parse_bytes_per_second(rate)) /
                                         static_cast<double>(disks));
  } catch (const Error&) {
    return rate;
  }
}

/// The options as a scenario, so that both are checked in one place. The rate is that of all disks.
std::string scenario_text(const ForecastArguments& options) {
  check_pattern(options.pattern);
  json::array disks;
  for (std::uint64_t i = 0; i < options.disks; ++i)
    disks.push_back({{"name", fmt::format("disk{}", i)}, {"size", options.disk_size}});
  json::object load{{"pattern", options.pattern}};
  if (!options.write_rate.empty())
    load["rate"] = rate_of_each(options.write_rate, options.disks);
  json::object storage;
  const auto put = [&](const char* key, const std::string& text) {
    if (!text.empty())
      storage[key] = text;
  };
  put("throughput", options.storage);
  put("latency", options.latency);
  put("flush-latency", options.flush_latency);
  return client::pretty(
      json::object{{"disks", disks}, {"storage", storage}, {"loads", json::array{load}}});
}

/// Of both times that do not come from a scenario, with its limits.
Clock::Duration time_of(std::string_view option, const std::string& text) {
  const auto [least, most] = std::pair(Scenario::kShortestDuration, Scenario::kLongestDuration);
  Clock::Duration time{};
  try {
    time = parse_time(text);
  } catch (const Error& error) {
    fail(EINVAL, "{}: {}; allowed are {} to {}", option, error.what(), least, most);
  }
  if (time < parse_time(least) || time > parse_time(most))
    fail(EINVAL, "{}: '{}' is out of range: {} to {}", option, text, least, most);
  return time;
}

Scenario scenario_of(const ForecastArguments& options) {
  if (options.scenario && options.scenario->empty())
    fail(EINVAL, "--scenario is empty: expected a scenario's file");
  Scenario scenario = options.scenario
                          ? read_scenario(*options.scenario)
                          : parse_scenario(scenario_text(options), "options", kOptions);
  if (!options.interval.empty())
    scenario.duration = time_of("--interval", options.interval);
  if (options.seed)
    scenario.seed = parse_seed("--seed", *options.seed);
  return scenario;
}

json::value to_json(const Spread& spread) {
  if (spread.count == 0)
    return nullptr;
  return json::object{{"median", spread.median},
                      {"percentile-95", spread.percentile_95},
                      {"percentile-99", spread.percentile_99},
                      {"largest", spread.largest}};
}

void print_json(const Forecast& forecast, const Scenario& scenario) {
  fmt::print(
      "{}",
      client::pretty(json::object{
          {"scenario", scenario.name},
          {"windows", forecast.windows},
          {"window-ms", to_json(forecast.window)},
          {"freeze-ms", to_json(forecast.freeze)},
          {"switch-ms", to_json(forecast.switched)},
          {"thaw-ms", to_json(forecast.thaw)},
          {"own-ms", to_json(forecast.own)},
          {"longest-stall-ms", to_json(forecast.stall)},
          {"full", json::object{{"overlay-bytes", to_json(forecast.full_overlay)},
                                {"session-ms", to_json(forecast.full_session)}}},
          {"incremental", json::object{{"overlay-bytes", to_json(forecast.incremental_overlay)},
                                       {"session-ms", to_json(forecast.incremental_session)}}},
          {"overlays-kept", forecast.overlays_kept},
          {"refused", forecast.refused},
      }));
}

void print_table(const Forecast& forecast, const Scenario& scenario) {
  const auto row = [](const char* name, const Spread& spread, auto format) {
    if (spread.count == 0)
      return;
    fmt::print("{:<38} {:>10} {:>10} {:>10}\n", name, format(spread.median),
               format(spread.percentile_99), format(spread.largest));
  };
  const auto time = [](double ms) {
    return format_time(
        std::chrono::duration_cast<Clock::Duration>(std::chrono::duration<double, std::milli>(ms)));
  };
  const auto size = [](double bytes) { return format_size(static_cast<std::uint64_t>(bytes)); };
  fmt::print("{}: {} disks, {} backups, {} between two of them\n\n", scenario.name,
             scenario.disks.size(), forecast.windows,
             time(1e3 * std::chrono::duration<double>(scenario.duration).count()));
  fmt::print("{:<38} {:>10} {:>10} {:>10}\n", "", "median", "99 %", "largest");
  row("freeze window", forecast.window, time);
  row("  the guest's freeze", forecast.freeze, time);
  row("  QEMU's switch", forecast.switched, time);
  row("  the guest's thaw", forecast.thaw, time);
  row("  nbdelta itself", forecast.own, time);
  row("longest stall of a request", forecast.stall, time);
  row("overlay of a full backup", forecast.full_overlay, size);
  row("overlay of an incremental one", forecast.incremental_overlay, size);
  row("time of a full backup", forecast.full_session, time);
  row("time of an incremental one", forecast.incremental_session, time);
  if (forecast.overlays_kept != 0)
    fmt::print(
        "\n{} of {} commits did not end: the guest writes faster than they copy. Back up "
        "with --tracking overlay, whose commits always end.\n",
        forecast.overlays_kept, forecast.windows);
  if (forecast.refused != 0)
    fmt::print("\n{} of {} backups were not made. The first: {}\n", forecast.refused,
               forecast.refused + forecast.windows, forecast.refusal);
}

Forecast forecast_shown(const Scenario& scenario, ForecastOptions options) {
  WorkProgress progress(options.runs * (options.incrementals + 1), "backups");
  options.done = [&progress](std::uint64_t backups) { progress.done(backups); };
  return forecast(scenario, options);
}

int run_forecast(const ForecastArguments& options) {
  const Scenario scenario = scenario_of(options);
  if (options.record)
    check_run_place(*options.record);
  Run record;
  ForecastOptions wanted;
  wanted.runs = options.runs;
  wanted.threads = options.jobs;
  if (!options.commit_deadline.empty())
    wanted.commit_deadline = std::chrono::duration_cast<std::chrono::milliseconds>(
        time_of("--commit-deadline", options.commit_deadline));
  wanted.record = options.record ? &record : nullptr;
  const Forecast result = forecast_shown(scenario, wanted);
  if (options.record)
    write_run(*options.record, record);
  (options.as_json ? print_json : print_table)(result, scenario);
  return 0;
}

}  // namespace

std::function<int()> add_forecast_command(CLI::App& app) {
  const auto options = std::make_shared<ForecastArguments>();
  CLI::App* command = app.add_subcommand(
      "forecast", "What freeze window and overlay to expect: many backups in virtual time");
  auto* scenario = command->add_option("--scenario", options->scenario, "A scenario's file");
  const auto add = [&](const char* name, std::string& value, const char* help) {
    command->add_option(name, value, help)->excludes(scenario);
  };
  add("--write-rate", options->write_rate, "Of the guest: \"5 MiB/s\", or unlimited");
  add("--storage", options->storage, "What it writes at most: \"200 MiB/s\"");
  add("--latency", options->latency, "Of a request: \"200 us\"");
  add("--flush-latency", options->flush_latency, "\"2 ms\"");
  add("--disk-size", options->disk_size, "Of each, full of data: \"4 GiB\"");
  add("--pattern", options->pattern, "sequential, uniform, zipf, database or idle");
  command->add_option("--disks", options->disks, "How many")
      ->excludes(scenario)
      ->check(CLI::Range(1, 64));
  command->add_option("--interval", options->interval, "Between backups: \"60 s\"; 1 s to 24 h");
  command->add_option("--commit-deadline", options->commit_deadline,
                      "Of nbdelta: after it the overlay stays; \"10 min\", 1 s to 24 h");
  command->add_option("--runs", options->runs, "Guests; each is backed up 6 times")
      ->check(CLI::Range(1, 100'000));
  command->add_option("--seed", options->seed, "Of the first; the others follow");
  command->add_option("--jobs", options->jobs, "Threads")->check(CLI::Range(1, 1024));
  command->add_option("--record", options->record, "Writes down what happened, for the report")
      ->type_name("FILE");
  command->add_flag("--json", options->as_json, "For scripts");
  command->footer("Example: nbdelta-sim forecast --write-rate '5 MiB/s' --storage '200 MiB/s'");
  return [options] { return run_forecast(*options); };
}

}  // namespace nbdelta::sim
