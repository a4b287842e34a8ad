#include "client/guest_options.hpp"

#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <utility>

#include "client/json_text.hpp"
#include "client/seconds.hpp"
#include "client/target/open_target.hpp"

namespace nbdelta::client {
namespace {

constexpr double kLongestDeadline_s = 86'400;

std::chrono::milliseconds to_ms(double seconds) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::duration<double>(seconds));
}

/// A folder or a file, not a way out of the repository.
std::string check_name(const std::string& name) {
  if (name.empty() || name.find('/') != std::string::npos || name.front() == '.')
    return "must be a name, not a path: it becomes a folder of the repository";
  return {};
}

}  // namespace

void GuestOptions::add_to(CLI::App& command, Needs needs) {
  CLI::Option* qmp_option =
      command.add_option("--qmp", qmp, "the guest's QMP server: a Unix socket, or HOST:PORT")
          ->type_name("ADDRESS");
  command.add_option("--agent", agent, "the guest agent's channel: a Unix socket, or HOST:PORT")
      ->type_name("ADDRESS");
  CLI::Option* vm_option = command.add_option("--vm", vm, "what the repository calls the guest")
                               ->type_name("NAME")
                               ->check(CLI::Validator(check_name, ""));
  CLI::Option* to_option =
      command.add_option("--to", repository, "the repository, a folder")->type_name("REPO");
  if (needs == Needs::guest_and_repository) {
    qmp_option->required();
    vm_option->required();
    to_option->required();
  } else {
    vm_option->needs(to_option);
    to_option->needs(vm_option);
  }
  command
      .add_option("--path", paths,
                  "where a path that QEMU knows is on this machine; may be given more than once")
      ->type_name("QEMU=LOCAL");
  command
      .add_option("--commit-deadline", commit_deadline_s,
                  "how long an overlay's commit may take to catch up with the guest")
      ->type_name("SECONDS")
      ->check(seconds_between(0.0, kLongestDeadline_s))
      ->capture_default_str();
  command.add_flag("--json", json, "print the result as a JSON object");
  command.add_flag("--quiet", quiet, "no progress; errors and warnings only");
  command.add_option("--plugin", plugin, "nbdkit-delta-plugin.so, where it is not installed")
      ->type_name("FILE");
}

void GuestOptions::add_session_options(CLI::App& command) {
  command.add_option("--disk", disks, "only this disk; may be given more than once")
      ->type_name("NAME");
  command.add_option("--exclude", exclude, "all but this disk; may be given more than once")
      ->type_name("NAME");
  command.add_flag("--full", full, "copy every disk as a whole");
  command.add_flag("--require-incremental", require_incremental,
                   "fail rather than copy a disk as a whole");
  command
      .add_option("--quiesce", quiesce,
                  "freeze the guest's file systems: where that can be, always, or never")
      ->type_name("auto|require|no")
      ->check(CLI::IsMember({"auto", "require", "no"}))
      ->capture_default_str();
  command
      .add_option("--mountpoint", mountpoints,
                  "freeze only this file system; may be given more than once")
      ->type_name("PATH");
  command
      .add_option("--freeze-deadline", freeze_deadline_s,
                  "the guest is thawed after this time, whatever happens")
      ->type_name("SECONDS")
      ->check(seconds_between(0.001, kLongestDeadline_s))
      ->capture_default_str();
  command.add_flag("--presync", presync, "run 'sync' in the guest first: the freeze is shorter");
  command
      .add_option("--tracking", tracking,
                  "how QEMU notes what changes: in bitmaps, or in an overlay that stays")
      ->type_name("bitmap|overlay")
      ->check(CLI::IsMember({"bitmap", "overlay"}))
      ->capture_default_str();
  command
      .add_option("--overlay-dir", overlay_dir,
                  "where overlays are made (a path of this machine); default: beside each image")
      ->type_name("FOLDER");
}

void GuestOptions::check_text(std::string_view option, const std::string& text) {
  if (!is_json_text(text))
    throw target::UsageError(
        EILSEQ,
        fmt::format("{} {}: is not UTF-8, which all must be that is written down of a session",
                    option, text));
}

backup::Options GuestOptions::interpret() const {
  static const std::map<std::string, backup::Quiesce> kQuiesce{
      {"auto", backup::Quiesce::automatic},
      {"require", backup::Quiesce::require},
      {"no", backup::Quiesce::no}};
  backup::Options options;
  const bool is_path = qmp.find('/') != std::string::npos || qmp.find(':') == std::string::npos;
  options.qmp =
      is_path && !qmp.empty() ? std::filesystem::absolute(qmp).lexically_normal().string() : qmp;
  if (!agent.empty())
    options.agent = agent;
  options.vm = vm;
  if (!repository.empty())
    options.folder = std::filesystem::absolute(repository).lexically_normal().string() + "/" + vm;
  options.full = full;
  options.require_incremental = require_incremental;
  options.disks = disks;
  options.exclude = exclude;
  options.quiesce = kQuiesce.at(quiesce);
  if (!mountpoints.empty())
    options.mountpoints = mountpoints;
  options.freeze_deadline = to_ms(freeze_deadline_s);
  options.presync = presync;
  options.tracking = tracking == "overlay" ? backup::Tracking::overlay : backup::Tracking::bitmap;
  options.commit_deadline = to_ms(commit_deadline_s);
  try {
    std::vector<std::pair<std::string, std::string>> rules;
    for (const std::string& rule : paths)
      rules.push_back(backup::Paths::parse_rule(rule));
    options.paths = backup::Paths(std::move(rules));
    if (!overlay_dir.empty()) {
      options.overlay_dir = std::filesystem::canonical(overlay_dir).string();
      if (!std::filesystem::is_directory(options.overlay_dir))
        fail(ENOTDIR, "--overlay-dir {}: is no folder", overlay_dir);
    }
  } catch (const Error& error) {
    throw target::UsageError(error.error_number(), error.what());
  } catch (const std::filesystem::filesystem_error& error) {
    throw target::UsageError(error.code().value(),
                             "--overlay-dir " + overlay_dir + ": " + error.code().message());
  }
  for (const auto& [option, text] : std::initializer_list<std::pair<const char*, std::string>>{
           {"--qmp", options.qmp},
           {"--agent", agent},
           {"--vm", vm},
           {"--to", options.folder},
           {"--overlay-dir", options.overlay_dir}})
    check_text(option, text);
  for (const auto& [option, texts] :
       std::initializer_list<std::pair<const char*, std::vector<std::string>>>{
           {"--path", paths},
           {"--disk", disks},
           {"--exclude", exclude},
           {"--mountpoint", mountpoints}})
    for (const std::string& text : texts)
      check_text(option, text);
  if (full && require_incremental)
    throw target::UsageError(EINVAL, "--full and --require-incremental exclude each other");
  if (options.quiesce == backup::Quiesce::no && (presync || !mountpoints.empty()))
    throw target::UsageError(
        EINVAL, fmt::format("--quiesce no excludes {}", presync ? "--presync" : "--mountpoint"));
  if (options.quiesce == backup::Quiesce::require && agent.empty())
    throw target::UsageError(EINVAL, "--quiesce require needs --agent");
  return options;
}

}  // namespace nbdelta::client
