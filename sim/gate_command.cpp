#include "sim/gate_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "client/exit_status.hpp"
#include "client/json_text.hpp"
#include "client/repository/manifest.hpp"
#include "sim/gate.hpp"
#include "sim/quantity.hpp"
#include "sim/run_file.hpp"
#include "sim/text_file.hpp"

namespace nbdelta::sim {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;
using client::repository::Manifest;

struct GateArguments {
  std::vector<std::string> scenarios;
  std::string budget = "150 us";
  std::string measured;
  std::string json;
  std::string record;
  GateOptions gate;
};

/// Of restore points that were taken in real time. In milliseconds.
struct Measured {
  Spread window;
  Spread own;
};

Measured measured_in(const std::string& folder) {
  std::vector<double> window;
  std::vector<double> own;
  if (fs::is_directory(folder))  // of each scenario there need not be any
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
      if (entry.path().filename() != "manifest.json")
        continue;
      const std::string file = entry.path().string();
      Manifest manifest;
      client::from_json_text(read_text_file(file, kLongestManifest), manifest, file);
      window.push_back(static_cast<double>(manifest.window.length_us()) / 1000);
      own.push_back(static_cast<double>(manifest.window.own_us()) / 1000);
    }
  return {spread_of(std::move(window)), spread_of(std::move(own))};
}

void print_head() {
  fmt::print("{:<17} {:>5} | {:>19} {:>9} {:>9} {:>8} | {:>8} {:>8} | {:>19}\n", "", "",
             "window in ms", "agent", "QEMU", "nbdelta", "QEMU", "nbdelta", "in real time");
  fmt::print("{:<17} {:>5} | {:>9} {:>9} {:>9} {:>9} {:>8} | {:>8} {:>8} | {:>10} {:>8}\n",
             "scenario", "disks", "median", "longest", "median", "median", "longest", "hangs",
             "killed", "window", "nbdelta");
}

void print_row(const Gated& row, const Measured& measured) {
  const auto number = [](const Spread& spread, double value, int decimals) {
    return spread.count == 0 ? std::string("-") : fmt::format("{:.{}f}", value, decimals);
  };
  fmt::print(
      "{:<17} {:>5} | {:>9.1f} {:>9.1f} {:>9.1f} {:>9.1f} {:>8.3f} | {:>8.0f} {:>8.1f} | {:>10} "
      "{:>8}  {}\n",
      row.scenario, row.disks, row.window.median, row.window.largest, row.agent.median,
      row.qemu.median, row.own.largest, row.freeze_in_hang, row.freeze_after_kill,
      number(measured.window, measured.window.median, 1),
      number(measured.own, measured.own.largest, 2), row.failures.empty() ? "ok" : "FAILS");
  std::fflush(stdout);
}

json::value summary(const Spread& spread) {
  if (spread.count == 0)
    return nullptr;
  return json::object{
      {"count", spread.count}, {"median", spread.median}, {"largest", spread.largest}};
}

json::value to_json(const Gated& row, const Measured& measured) {
  json::array failures;
  for (const std::string& failure : row.failures)
    failures.emplace_back(failure);
  return json::object{{"scenario", row.scenario},
                      {"disks", row.disks},
                      {"window-ms", summary(row.window)},
                      {"agent-ms", summary(row.agent)},
                      {"qemu-ms", summary(row.qemu)},
                      {"own-ms", summary(row.own)},
                      {"longest-freeze-ms", row.longest_freeze},
                      {"freeze-in-hang-ms", row.freeze_in_hang},
                      {"freeze-after-kill-ms", row.freeze_after_kill},
                      {"real-time", json::object{{"window-ms", summary(measured.window)},
                                                 {"own-ms", summary(measured.own)}}},
                      {"failures", std::move(failures)}};
}

std::string record_of(const std::string& folder, const std::string& scenario) {
  return folder + "/" + scenario + ".run.json";
}

int run(GateArguments options) {
  options.gate.budget = parse_time(options.budget);
  if (!options.measured.empty() && !fs::is_directory(options.measured))
    fail(ENOTDIR, "--measured: {}: is no folder", options.measured);
  std::vector<Scenario> scenarios;
  for (const std::string& file : options.scenarios) {
    scenarios.push_back(read_scenario(file));
    if (!options.record.empty())
      check_run_place(record_of(options.record, scenarios.back().name));
  }
  if (!options.json.empty())
    check_run_place(options.json);
  fmt::print("Freeze windows in virtual time; nbdelta's own share may be {}\n\n",
             format_time(options.gate.budget));
  print_head();
  json::array rows;
  std::vector<std::string> failures;
  std::vector<std::future<Gated>> running;
  for (const Scenario& scenario : scenarios)
    running.push_back(std::async(std::launch::async, gate, scenario, options.gate));
  for (std::future<Gated>& each : running) {
    const Gated row = each.get();
    const Measured measured =
        options.measured.empty() ? Measured() : measured_in(options.measured + "/" + row.scenario);
    print_row(row, measured);
    for (const std::string& failure : row.failures)
      failures.push_back(row.scenario + ": " + failure);
    rows.push_back(to_json(row, measured));
    if (!options.record.empty())
      write_run(record_of(options.record, row.scenario), row.record);
  }
  fmt::print("\n");
  for (const std::string& failure : failures)
    fmt::print("{}\n", failure);
  if (!options.json.empty())
    replace_file(
        options.json,
        client::pretty(json::object{
            {"budget-ms", std::chrono::duration<double, std::milli>(options.gate.budget).count()},
            {"scenarios", std::move(rows)}}));
  return failures.empty() ? client::kDone : client::kFailed;
}

constexpr const char* kFooter = R"(Example: nbdelta-sim gate sim/scenarios/*.json

For each scenario: the window, and what of it the agent, QEMU and nbdelta took; how long the guest was
frozen where QEMU hangs in the switch, and where nbdelta is killed there. Exit status: 0 all within
their limits; 1 one is not.)";

}  // namespace

std::function<int()> add_gate_command(CLI::App& app) {
  const auto options = std::make_shared<GateArguments>();
  CLI::App* command =
      app.add_subcommand("gate", "Whether freeze windows keep to their budget, in virtual time");
  command->add_option("SCENARIO", options->scenarios, "files")->required();
  command->add_option("--budget", options->budget, "of nbdelta itself in one window");
  command->add_option("--runs", options->gate.runs, "guests of each, with seeds of their own")
      ->check(CLI::Range(1, 100'000));
  command
      ->add_option("--measured", options->measured,
                   "restore points taken in real time, in FOLDER/SCENARIO: printed beside")
      ->type_name("FOLDER");
  command->add_option("--json", options->json, "the table for scripts")->type_name("FILE");
  command
      ->add_option("--record", options->record,
                   "writes down what happened, for the report: FOLDER/SCENARIO.run.json")
      ->type_name("FOLDER");
  command->footer(kFooter);
  return [options] { return run(*options); };
}

}  // namespace nbdelta::sim
