#include "client/backup_command.hpp"

#include <fmt/format.h>

#include <memory>

#include "base/units.hpp"
#include "client/backup/session.hpp"
#include "client/console.hpp"
#include "client/guest_options.hpp"
#include "client/json_text.hpp"
#include "client/run_session.hpp"
#include "client/say.hpp"
#include "client/stdout.hpp"

namespace nbdelta::client {
namespace {

using backup::Forecast;
using backup::Report;

struct BackupOptions {
  GuestOptions guest;
  bool dry_run = false;
  bool direct = false;
};

std::string_view map_name(backup::MapSource map) {
  switch (map) {
    case backup::MapSource::none:
      return "everything";
    case backup::MapSource::image:
      return "bitmap in the image";
    case backup::MapSource::qemu:
      return "bitmap in QEMU";
    case backup::MapSource::absorbed:
      return "bitmap in QEMU, and the overlay in place";
    case backup::MapSource::layer:
      return "overlay";
  }
  return {};
}

void print_forecast(const Forecast& forecast, bool as_json) {
  if (as_json) {
    qapi::json::array disks;
    for (const backup::DiskPlan& disk : forecast.plan.disks) {
      qapi::json::object object{{"name", disk.disk.name},
                                {"size", disk.disk.size},
                                {"type", disk.full() ? "full" : "incremental"},
                                {"map", map_name(disk.map)},
                                {"path", disk.disk.base_path}};
      if (disk.reason)
        object["reason"] = *disk.reason;
      disks.push_back(std::move(object));
    }
    qapi::json::array notes;
    for (const std::string& note : forecast.notes)
      notes.push_back(qapi::json::value(note));
    for (const std::string& note : forecast.plan.notes)
      notes.push_back(qapi::json::value(note));
    print_stdout(pretty(qapi::json::object{{"result", "plan"},
                                           {"type", forecast.plan.type()},
                                           {"disks", std::move(disks)},
                                           {"notes", std::move(notes)}}));
    return;
  }
  std::string text;
  for (const backup::DiskPlan& disk : forecast.plan.disks)
    text +=
        fmt::format("{:<12} {:<11} {:>10}  {}{}{}\n", disk.disk.name,
                    disk.full() ? "full" : "incremental", format_size(disk.disk.size),
                    disk.disk.base_path, disk.reason ? "; because " : "", disk.reason.value_or(""));
  for (const std::string& note : forecast.notes)
    text += note + "\n";
  for (const std::string& note : forecast.plan.notes)
    text += note + "\n";
  print_stdout(text);
}

double ms(std::int64_t us) {
  return static_cast<double>(us) / 1000;
}

void print_report(const Report& report, const GuestOptions& options) {
  if (options.json) {
    qapi::json::object object = qapi::to_json(report.manifest).get_object();
    object["result"] = "done";
    object["point"] = report.point;
    object["overlay-kept"] = report.overlay_kept;
    qapi::json::array warnings;
    for (const std::string& warning : report.warnings)
      warnings.push_back(qapi::json::value(warning));
    object["warnings"] = std::move(warnings);
    print_stdout(pretty(object));
  }
  if (options.quiet)
    return;
  for (const repository::DiskEntry& disk : report.manifest.disks)
    say("  {}: {}, {} of {} copied, {} zero\n", disk.name, disk.type,
        format_size(disk.written.value_or(0)), format_size(disk.size),
        format_size(disk.zeroed.value_or(0)));
  const repository::Window& window = report.manifest.window;
  say("{}: {}-consistent; window {:.1f} ms (agent {:.1f}, QEMU {:.1f}, nbdelta {:.2f})\n",
      report.point, report.manifest.consistency, ms(window.length_us()), ms(window.agent_us()),
      ms(window.switch_us()), ms(window.own_us()));
}

int run_backup_command(const BackupOptions& options) {
  backup::Options session_options = options.guest.interpret();
  session_options.direct = options.direct;
  ConsoleReporter console(options.guest.quiet);
  return run_session(
      options.guest,
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        backup::Session session(environment, session_options, console.reporter());
        if (options.dry_run) {
          const Forecast forecast = co_await session.forecast();
          print_forecast(forecast, options.guest.json);
          co_return;
        }
        const Report report = co_await session.backup();
        print_report(report, options.guest);
      },
      [&] { console.tick(); });
}

constexpr const char* kFooter = R"(Example:
  nbdelta backup --qmp /run/vm1.qmp --agent /run/vm1.qga --vm vm1 --to /backup

Exit status: 0 done; 1 failed (the guest runs as before unless the message says otherwise); 2 the
command line makes no sense; 3 refused, nothing was touched; 129, 130, 143 interrupted by
SIGHUP, SIGINT, SIGTERM. Manual: nbdelta(1), docs/operations.md.)";

}  // namespace

std::function<int()> add_backup_command(CLI::App& app) {
  const auto options = std::make_shared<BackupOptions>();
  CLI::App* command = app.add_subcommand("backup", "Back up a running guest");
  options->guest.add_to(*command, GuestOptions::Needs::guest_and_repository);
  options->guest.add_session_options(*command);
  command->add_flag("--direct", options->direct,
                    "read the images in this process, without nbdkit; by reference, or on the "
                    "file server, where the file system can copy so");
  command->add_flag("--dry-run", options->dry_run, "print what would be done, and touch nothing");
  command->footer(kFooter);
  return [options] { return run_backup_command(*options); };
}

}  // namespace nbdelta::client
