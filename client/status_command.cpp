#include "client/status_command.hpp"

#include <fmt/format.h>

#include <memory>
#include <string>
#include <string_view>

#include "base/units.hpp"
#include "client/backup/real/plugin.hpp"
#include "client/backup/session.hpp"
#include "client/guest_options.hpp"
#include "client/json_text.hpp"
#include "client/run_session.hpp"
#include "client/stdout.hpp"
#include "client/target/open_target.hpp"
#include "qapi/job_commands.hpp"

namespace nbdelta::client {
namespace {

namespace json = qapi::json;

json::array bitmaps_of(const backup::GuestDisk& disk) {
  json::array bitmaps;
  for (const qapi::BitmapInfo& bitmap : disk.bitmaps)
    if (backup::session_of(bitmap.name))
      bitmaps.push_back(qapi::to_json(bitmap));
  return bitmaps;
}

json::array overlays_of(const backup::GuestDisk& disk, backup::Files& files) {
  json::array overlays;
  for (const backup::StackedOverlay& overlay : disk.overlays) {
    json::object object{{"node-name", overlay.node_name},
                        {"path", overlay.path},
                        {"chain", overlay.session.chain},
                        {"number", overlay.session.number}};
    try {
      object["allocated"] = files.allocated(overlay.local);
    } catch (const Error&) {  // not on this machine
    }
    overlays.push_back(std::move(object));
  }
  return overlays;
}

json::object disk_status(const backup::GuestDisk& disk, backup::Files& files) {
  return {{"name", disk.name},
          {"size", disk.size},
          {"path", disk.base_path},
          {"node-name", disk.base_node},
          {"overlays", overlays_of(disk, files)},
          {"bitmaps", bitmaps_of(disk)}};
}

asio::awaitable<json::object> guest_status(qmp::Client& qmp, backup::Environment& environment,
                                           const backup::Options& options) {
  const backup::Inventory inventory =
      co_await backup::query_inventory(qmp, environment, options.paths);
  json::array disks;
  for (const backup::GuestDisk& disk : inventory.disks)
    disks.push_back(disk_status(disk, environment.files()));
  json::array jobs;
  const auto known = co_await qmp.call(qapi::QueryJobs{});
  for (const qapi::JobInfo& job : known)
    if (backup::session_of(job.id))
      jobs.push_back(qapi::to_json(job));
  const qapi::RunState state = co_await qmp.call(qapi::QueryStatus{});
  co_return json::object{
      {"guest", state.status}, {"disks", std::move(disks)}, {"jobs", std::move(jobs)}};
}

json::value session_status(backup::Files& files, const backup::Options& options) {
  if (options.folder.empty())
    return nullptr;
  const auto journal = backup::read_journal(files, options.folder);
  return journal ? qapi::to_json(*journal) : json::value(nullptr);
}

/// Of a session of external software, while its exports should be there.
json::array exports_status(backup::Files& files, const backup::Options& options) {
  json::array exports;
  if (options.folder.empty())
    return exports;
  const auto journal = backup::read_journal(files, options.folder);
  if (!journal || !journal->external || journal->phase != backup::phase::kExport)
    return exports;
  for (const backup::JournalDisk& disk : journal->disks)
    exports.push_back(
        json::object{{"disk", disk.name}, {"serving", backup::plugin_serves(disk.overlay_node)}});
  return exports;
}

json::value latest_status(backup::Files& files, const backup::Options& options) {
  if (options.folder.empty())
    return nullptr;
  const auto latest = repository::Repository(files, options.folder).latest();
  if (!latest)
    return nullptr;
  return json::object{{"number", latest->number},
                      {"chain", latest->chain},
                      {"type", latest->type},
                      {"created", latest->created},
                      {"consistency", latest->consistency}};
}

std::string_view text_of(const json::value& value) {
  return {value.as_string().data(), value.as_string().size()};
}

bool runs_on_overlays_of_others(const json::object& status) {
  const json::value& latest = status.at("latest");
  const std::string_view chain =
      latest.is_object() ? text_of(latest.at("chain")) : std::string_view();
  for (const json::value& disk : status.at("disks").as_array())
    for (const json::value& overlay : disk.at("overlays").as_array())
      if (text_of(overlay.at("chain")) != chain)
        return true;
  return false;
}

std::string for_people(const json::object& status) {
  std::string text;
  if (const std::string_view guest = text_of(status.at("guest")); guest != "running")
    text += fmt::format(
        "the guest does not run ({}{})\n", guest,
        guest == "io-error" ? ": an error of its storage; it goes on after 'cont'" : "");
  if (const json::value& latest = status.at("latest"); latest.is_object())
    text += fmt::format("last restore point: {:04}-{}, {}, {}-consistent\n",
                        latest.at("number").to_number<std::uint32_t>(), text_of(latest.at("type")),
                        text_of(latest.at("created")), text_of(latest.at("consistency")));
  if (const json::value& session = status.at("session"); session.is_object())
    text +=
        fmt::format("session {}: {}, begun {}\n", session.at("number").to_number<std::uint32_t>(),
                    text_of(session.at("phase")), text_of(session.at("started")));
  else if (runs_on_overlays_of_others(status))
    text +=
        "the guest runs on overlays of a session that is not known here: name its repository "
        "(--vm, --to)\n";
  else
    text += "no session is open\n";
  for (const json::value& disk : status.at("disks").as_array()) {
    text += fmt::format("{}: {}, {}\n", text_of(disk.at("name")), text_of(disk.at("path")),
                        format_size(disk.at("size").to_number<std::uint64_t>()));
    for (const json::value& overlay : disk.at("overlays").as_array()) {
      const json::value* allocated = overlay.as_object().if_contains("allocated");
      text += fmt::format(
          "  overlay {}{}\n", text_of(overlay.at("path")),
          allocated == nullptr ? "" : ", " + format_size(allocated->to_number<std::uint64_t>()));
    }
    for (const json::value& bitmap : disk.at("bitmaps").as_array())
      text += fmt::format("  bitmap {}: {} dirty{}{}\n", text_of(bitmap.at("name")),
                          format_size(bitmap.at("count").to_number<std::uint64_t>()),
                          bitmap.at("recording").as_bool() ? "" : ", disabled",
                          bitmap.as_object().contains("inconsistent") ? ", inconsistent" : "");
  }
  for (const json::value& each : status.at("exports").as_array())
    if (!each.at("serving").as_bool())
      text += fmt::format(
          "export of {}: no nbdkit serves it on this machine (any more); 'nbdelta end --failure', "
          "then begin again\n",
          text_of(each.at("disk")));
  for (const json::value& job : status.at("jobs").as_array())
    text += fmt::format("job {}: {}\n", text_of(job.at("id")), text_of(job.at("status")));
  return text;
}

int run_status_command(const GuestOptions& options) {
  if (options.qmp.empty())
    throw target::UsageError(EINVAL, "say --qmp ADDRESS");
  const backup::Options session_options = options.interpret();
  return run_session(
      options,
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        qmp::Client qmp(co_await environment.connect_qmp(session_options.qmp), environment.clock());
        co_await qmp.open();
        json::object status = co_await guest_status(qmp, environment, session_options);
        status["session"] = session_status(environment.files(), session_options);
        status["exports"] = exports_status(environment.files(), session_options);
        status["latest"] = latest_status(environment.files(), session_options);
        print_stdout(options.json ? pretty(status) : for_people(status));
      },
      [] {});
}

}  // namespace

std::function<int()> add_status_command(CLI::App& app) {
  const auto options = std::make_shared<GuestOptions>();
  CLI::App* command =
      app.add_subcommand("status", "Show sessions, overlays, bitmaps and jobs of a guest");
  options->add_to(*command, GuestOptions::Needs::guest);
  command->footer(R"(Example:
  nbdelta status --qmp /run/vm1.qmp --vm vm1 --to /backup)");
  return [options] { return run_status_command(*options); };
}

}  // namespace nbdelta::client
