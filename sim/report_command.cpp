#include "sim/report_command.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/file.hpp"
#include "client/exit_status.hpp"
#include "sim/report_page.hpp"
#include "sim/run_file.hpp"

namespace nbdelta::sim {
namespace {

struct ReportArguments {
  std::vector<std::string> files;
  std::string folder = "report";
  std::size_t details = 6;
};

/// Those of an earlier report, which had more sessions.
void remove_stale_pictures(const std::string& folder, const std::vector<ReportFile>& files) {
  std::vector<std::filesystem::path> stale;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (is_picture_of_report(name) &&
        std::none_of(files.begin(), files.end(),
                     [&](const ReportFile& each) { return each.name == name; }))
      stale.push_back(entry.path());
  }
  for (const std::filesystem::path& each : stale)
    std::filesystem::remove(each);
}

int report(const ReportArguments& options) {
  std::vector<Run> runs;
  for (const std::string& file : options.files)
    runs.push_back(read_run(file));
  const std::vector<ReportFile> files = make_report(runs, options.details);
  std::error_code error;
  std::filesystem::create_directories(options.folder, error);
  if (error)
    fail(error.value(), "{}: cannot be made: {}", options.folder, error.message());
  for (const ReportFile& each : files) {
    const File out = File::open(options.folder + "/" + each.name, O_RDWR | O_CREAT | O_TRUNC);
    out.write_at(std::as_bytes(std::span(each.text)), 0);
  }
  remove_stale_pictures(options.folder, files);
  fmt::print("{}/{}\n", options.folder, files.front().name);
  return client::kDone;
}

constexpr const char* kFooter = R"(Example:
  nbdelta-sim forecast --scenario database.json --record database.run.json
  nbdelta-sim report database.run.json --to report

RUN.json is what --record of run, forecast, gate and explore writes, the manifest of a restore point, or
what 'nbdelta backup --json' printed. Needs gnuplot.)";

}  // namespace

std::function<int()> add_report_command(CLI::App& app) {
  const auto options = std::make_shared<ReportArguments>();
  CLI::App* command = app.add_subcommand("report", "Draws what runs were: a page and its pictures");
  command->add_option("RUN.json", options->files, "what to show")->required();
  command->add_option("--to", options->folder, "where report.html and *.svg go; \"report\"")
      ->type_name("FOLDER");
  command->add_option("--details", options->details, "how many sessions are drawn one by one; 6")
      ->check(CLI::Range(0, 100));
  command->footer(kFooter);
  return [options] { return report(*options); };
}

}  // namespace nbdelta::sim
