#include "client/pull_command.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/units.hpp"
#include "base/utf8.hpp"
#include "client/console.hpp"
#include "client/exit_status.hpp"
#include "client/interruptible.hpp"
#include "client/pull/job.hpp"
#include "client/pull/progress.hpp"
#include "client/say.hpp"
#include "client/source_options.hpp"
#include "client/target/open_target.hpp"

namespace nbdelta::client {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr unsigned kMostConnections = 64;
constexpr unsigned kMostDepth = 256;
constexpr std::uint64_t kSmallestRequest = 4 * kKiB;
constexpr std::uint64_t kLargestRequest = 32 * kMiB;  // NBD protocol: what every server must take
constexpr std::uint64_t kLargestBridge = 32 * kMiB;

struct PullOptions {
  SourceOptions source;
  target::TargetOptions target;
  std::string format;
  std::string base_format;
  std::string request_size;
  std::string bridge = "16K";
  std::string rate;
  pull::Settings settings;
  bool connections_given = false;
  bool quiet = false;
  bool json = false;
};

void print_json(const PullOptions& options, const pull::JobResult& result,
                const pull::Counters& counters) {
  const boost::json::object object{{"result", "done"},
                                   {"source", as_utf8(options.source.uri)},
                                   {"target", as_utf8(options.target.name)},
                                   {"disk_size", result.disk_size},
                                   {"changed_view", result.changed_view},
                                   {"packed", result.packed},
                                   {"extents", result.extents},
                                   {"bytes_written", counters.written.load()},
                                   {"bytes_zeroed", counters.zeroed.load()},
                                   {"bytes_read", counters.read.load()},
                                   {"requests", counters.requests.load()},
                                   {"connections", counters.connections.load()},
                                   {"retries", counters.retries.load()},
                                   {"map_seconds", result.map_seconds},
                                   {"seconds", result.seconds}};
  fmt::print("{}\n", boost::json::serialize(object));
  if (std::fflush(stdout) != 0)
    fail_errno("standard output");
}

void print_summary(const PullOptions& options, const pull::JobResult& result,
                   const pull::Counters& counters) {
  const double moving = result.seconds - result.map_seconds;
  const auto rate =
      static_cast<std::uint64_t>(moving > 0 ? static_cast<double>(counters.read) / moving : 0);
  say("{}: {} {}written, {} zero, {} extent{}, in {} ({}/s)\n", options.target.name,
      format_size(counters.written), result.changed_view ? "changed and " : "",
      format_size(counters.zeroed), result.extents, result.extents == 1 ? "" : "s",
      format_duration(result.seconds), format_size(rate));
}

int run_pull(const PullOptions& options) {
  pull::Counters counters;
  pull::Job job({.source = options.source.connect_options(),
                 .target = options.target,
                 .settings = options.settings,
                 .connections_given = options.connections_given},
                counters);
  pull::Progress progress(
      options.quiet ? pull::Progress::Style::none : pull::Progress::style_for_stderr(), counters);
  const Interruptible work{
      .job = [&](std::stop_source& stop) { job.run(stop); },
      .tick = [&] { progress.tick(SteadyClock::now()); },
      .abandon =
          [&] {
            const std::string done = job.abandon();
            const std::string message =
                fmt::format("interrupted{}{}", done.empty() ? "" : "; ", done);
            say("nbdelta: {}\n", message);
            print_failure(options.json, "interrupted", message);
          },
      .interrupted =
          [&](const Error& error) { print_failure(options.json, "interrupted", error.what()); }};
  int status = kDone;
  try {
    status = run_interruptibly(work);
  } catch (...) {
    progress.clear();
    throw;
  }
  progress.clear();
  if (status != kDone)
    return status;
  if (!options.quiet)
    print_summary(options, job.result(), counters);
  if (options.json)
    print_json(options, job.result(), counters);
  return kDone;
}

int run_pull_command(const PullOptions& options) {
  try {
    return run_pull(options);
  } catch (const target::UsageError&) {
    throw;
  } catch (const std::exception& error) {
    print_failure(options.json, result_of(error), error.what());
    throw;
  }
}

/// The target may be a server where the source is none.
void refuse_server_options(const CLI::App& command, const PullOptions& options) {
  const std::string& source = options.source.uri;
  refuse_for_image(command, source, {"--retries", "--depth", "--request-size", "--bridge"});
  if (!target::is_nbd_uri(options.target.name))
    refuse_for_image(command, source, {"--timeout"});
}

/// Sizes and formats that CLI11 leaves as text.
void interpret(PullOptions& options) {
  const auto between = [](std::uint64_t value, std::uint64_t low, std::uint64_t high,
                          std::string_view what) {
    if (value < low || value > high)
      throw target::UsageError(
          EINVAL, fmt::format("{}: must be {} to {}", what, format_size(low), format_size(high)));
    return value;
  };
  try {
    pull::Settings& settings = options.settings;
    if (!options.request_size.empty())
      settings.request_size = between(parse_size(options.request_size, "--request-size"),
                                      kSmallestRequest, kLargestRequest, "--request-size");
    settings.bridge =
        between(parse_size(options.bridge, "--bridge"), 0, kLargestBridge, "--bridge");
    if (!options.rate.empty())
      settings.rate = between(parse_size(options.rate, "--rate"), 1, UINT64_MAX, "--rate");
    if (!options.format.empty())
      options.target.format = image::parse_format(options.format, "--format");
    if (!options.base_format.empty())
      options.target.base_format = image::parse_format(options.base_format, "--base-format");
  } catch (const Error& error) {
    throw target::UsageError(error.error_number(), error.what());
  }
  options.settings.retry = options.source.retry_policy();
  options.target.timeout = options.source.connect_options().timeout;
}

void add_target_options(CLI::App& command, target::TargetOptions& target, PullOptions& options) {
  command
      .add_option("TARGET", target.name,
                  "FILE.qcow2, any other FILE or block device (raw), an NBD URI, or null:")
      ->required();
  command.add_flag(
      "--force", target.force,
      "replace an existing target, once the new one is complete; with --apply: in any case");
  command.add_flag("--apply", target.apply,
                   "write the changes into an existing raw image, block device or NBD server");
  command.add_option("--format", options.format, "of TARGET; default by its name")
      ->type_name("qcow2|raw");
  command
      .add_option("--base", target.base,
                  "the previous backup, under a new qcow2; relative to TARGET's folder")
      ->type_name("FILE");
  command.add_option("--base-format", options.base_format, "of --base; default by its name")
      ->type_name("qcow2|raw");
}

void add_transfer_options(CLI::App& command, PullOptions& options) {
  pull::Settings& settings = options.settings;
  command.add_option("--connections", settings.connections, "to the source at most")
      ->type_name("N")
      ->check(CLI::Range(1U, kMostConnections))
      ->capture_default_str();
  command
      .add_option("--depth", settings.depth,
                  "requests in flight on each connection; default: 2 to 64, by their size")
      ->type_name("N")
      ->check(CLI::Range(1U, kMostDepth));
  command
      .add_option("--request-size", options.request_size,
                  "bytes of one request at most; default: 256K; 1M from nbdkit delta")
      ->type_name("SIZE");
  command
      .add_option("--bridge", options.bridge, "gaps up to this size are read rather than skipped")
      ->type_name("SIZE")
      ->capture_default_str();
  command.add_option("--rate", options.rate, "bytes a second at most, as in 50M")
      ->type_name("SIZE");
  command.add_flag("--quiet", options.quiet, "no progress and no summary");
  command.add_flag("--json", options.json, "print the result as a JSON object");
}

constexpr const char* kFooter = R"(Examples:
  nbdelta pull 'nbd+unix:///?socket=/run/nbd.sock' full.qcow2
  nbdelta pull 'nbd+unix:///dirty:b0?socket=/run/nbd.sock' monday.qcow2 --base full.qcow2
  nbdelta pull 'nbd+unix:///dirty:b0?socket=/run/nbd.sock' copy.raw --apply
  nbdelta pull 'delta:/images/disk.qcow2?bitmap=b0' monday.qcow2 --base full.qcow2

Exit status: 0 done; 1 failed; 2 the command line makes no sense; 3 the target was refused (exists,
too small, in use, no space) and is untouched; 129, 130, 143 interrupted by SIGHUP, SIGINT,
SIGTERM.)";

}  // namespace

std::function<int()> add_pull_command(CLI::App& app) {
  const auto options = std::make_shared<PullOptions>();
  CLI::App* command = app.add_subcommand(
      "pull", "Copy a disk, or what has changed, from an NBD server or an image");
  options->source.add_to(*command);
  add_target_options(*command, options->target, *options);
  add_transfer_options(*command, *options);
  command->footer(kFooter);
  return [options, command] {
    options->connections_given = command->count("--connections") != 0;
    refuse_server_options(*command, *options);
    interpret(*options);
    return run_pull_command(*options);
  };
}

}  // namespace nbdelta::client
