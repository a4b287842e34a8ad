#include "sim/run_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <boost/json/stream_parser.hpp>
#include <filesystem>
#include <fstream>
#include <span>
#include <utility>

#include "base/error.hpp"
#include "base/file.hpp"
#include "qapi/fields.hpp"
#include "sim/json_place.hpp"
#include "sim/text_file.hpp"

namespace nbdelta::sim {
namespace {

namespace json = boost::json;
namespace repository = client::repository;

constexpr std::uint64_t kLongestRunFile = std::uint64_t{1} << 30;
constexpr std::int64_t kLongestRun = std::int64_t{1} << 53;  // microseconds: what a double can hold

json::value parse_json(std::string_view text, const std::string& file) {
  json::stream_parser parser;
  json::error_code status;
  const std::size_t taken = parser.write_some(text.data(), text.size(), status);
  const std::size_t rest = text.find_first_not_of(" \t\r\n", taken);
  if (!status && parser.done() && rest == std::string_view::npos)
    return parser.release();
  const Place place = place_at(text, taken);
  fail(EINVAL, "{}:{}:{}: is not JSON: {}", file, place.line, place.column,
       status          ? status.message()
       : parser.done() ? "something follows it"
                       : "it ends too early");
}

/// What the structures' types do not say of a run.
class Check {
 public:
  explicit Check(std::string where) : where_(std::move(where)) {}

  void run(const Run& run) {
    if (run.time != kVirtual && run.time != kReal)
      fail(EINVAL, "{}.time is '{}', not {} or {}", where_, run.time, kVirtual, kReal);
    for (std::size_t i = 0; i < run.sessions.size(); ++i)
      session(run.sessions[i], fmt::format("{}.sessions[{}]", where_, i));
  }

 private:
  void session(const RunSession& session, const std::string& where) {
    instant(session.start_us, 0, where + ".start-us");
    instant(session.end_us, session.start_us, where + ".end-us");
    each(session.commands, where + ".commands", [&](const RunCommand& command, const auto& place) {
      if (command.to != kToQemu && command.to != kToAgent)
        fail(EINVAL, "{}.to is '{}', not {} or {}", place, command.to, kToQemu, kToAgent);
      if (command.end_us)
        instant(*command.end_us, command.start_us, place + ".end-us");
      return std::pair(command.start_us, ".start-us");
    });
    each(session.frozen, where + ".frozen", [&](const RunInterval& frozen, const auto& place) {
      instant(frozen.end_us, frozen.start_us, place + ".end-us");
      return std::pair(frozen.start_us, ".start-us");
    });
    each(session.latency, where + ".latency", [&](const RunLatency& latency, const auto& place) {
      instant(latency.mean_us, 0, place + ".mean-us");
      instant(latency.longest_us, latency.mean_us, place + ".longest-us");
      return std::pair(latency.start_us, ".start-us");
    });
    const auto amount = [](const RunAmount& each, const auto&) {
      return std::pair(each.at_us, ".at-us");
    };
    each(session.overlay, where + ".overlay", amount);
    each(session.pulled, where + ".pulled", amount);
    for (std::size_t i = 1; i < session.pulled.size(); ++i)
      if (session.pulled[i].bytes < session.pulled[i - 1].bytes)
        fail(EINVAL, "{}.pulled[{}].bytes is less than before", where, i);
    each(session.faults, where + ".faults",
         [](const RunFault& fault, const auto&) { return std::pair(fault.at_us, ".at-us"); });
  }

  /// `look` returns the time that the list is ordered by, and its name.
  template <class T, class Look>
  static void each(const std::vector<T>& list, const std::string& where, Look look) {
    std::int64_t before = 0;
    for (std::size_t i = 0; i < list.size(); ++i) {
      const std::string place = fmt::format("{}[{}]", where, i);
      const auto [time, name] = look(list[i], place);
      instant(time, before, place + name);
      before = time;
    }
  }

  static void instant(std::int64_t us, std::int64_t low, const std::string& where) {
    if (us < low || us > kLongestRun)
      fail(EINVAL, "{} is {}, not {} to {}", where, us, low, kLongestRun);
  }

  std::string where_;
};

Run run_of_manifest(const json::value& value, const std::string& file) {
  repository::Manifest manifest;
  qapi::from_json(value, manifest, file + ": manifest");
  if (manifest.manifest_version != repository::Manifest::kVersion)
    fail(EINVAL, "{}: manifest-version is {}, not {}", file, manifest.manifest_version,
         repository::Manifest::kVersion);
  Run run;
  run.name = manifest.vm;
  run.time = kReal;
  run.sessions.push_back(session_of(manifest));
  Check(file + ": manifest's window").run(run);
  return run;
}

/// A pipe, a device: it stays what it is.
bool is_special(const std::string& file) {
  std::error_code ignored;
  return std::filesystem::exists(file, ignored) && !std::filesystem::is_regular_file(file, ignored);
}

/// Takes the place of the file when it is whole.
std::string next_of(const std::string& file) {
  return file + ".new";
}

}  // namespace

RunSession session_of(const repository::Manifest& manifest) {
  const repository::Window& window = manifest.window;
  const std::int64_t start = window.freeze_sent_us.value_or(window.switch_sent_us);
  RunSession session;
  session.name = fmt::format("{:04}-{}", manifest.number, manifest.type);
  session.result = kResultDone;
  // Unsigned: whatever a file says, the subtraction is defined.
  const auto since = [start](std::int64_t us) {
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(us) -
                                     static_cast<std::uint64_t>(start));
  };
  const auto add = [&](std::string_view to, const char* name, std::optional<std::int64_t> sent,
                       std::optional<std::int64_t> answered) {
    if (!sent || !answered)
      return;
    RunCommand& command = session.commands.emplace_back();
    command.to = to;
    command.name = name;
    command.start_us = since(*sent);
    command.end_us = since(*answered);
    session.end_us = *command.end_us;
  };
  add(kToAgent, "guest-fsfreeze-freeze", window.freeze_sent_us, window.freeze_answered_us);
  add(kToQemu, "transaction", window.switch_sent_us, window.switch_answered_us);
  session.commands.back().snapshots = manifest.disks.size();
  add(kToAgent, "guest-fsfreeze-thaw", window.thaw_sent_us, window.thaw_answered_us);
  return session;
}

Run parse_run(std::string_view text, const std::string& file) {
  const json::value value = parse_json(text, file);
  const json::object* object = value.if_object();
  if (object != nullptr && object->contains("manifest-version"))
    return run_of_manifest(value, file);
  if (object == nullptr || !object->contains("run-version"))
    fail(EINVAL, "{}: is neither a run of nbdelta-sim nor a manifest of nbdelta", file);
  Run run;
  qapi::from_json(object->at("run-version"), run.run_version, file + ": run.run-version");
  if (run.run_version != Run::kVersion)  // before the members that it may have changed
    fail(EINVAL, "{}: run.run-version is {}, not {}", file, run.run_version, Run::kVersion);
  qapi::from_json(value, run, file + ": run");
  Check(file + ": run").run(run);
  return run;
}

Run read_run(const std::string& file) {
  return parse_run(read_text_file(file, kLongestRunFile), file);
}

void check_run_place(const std::string& file) {
  if (file.empty())
    fail(EINVAL, "the path of the record is empty");
  if (is_special(file)) {
    if (std::filesystem::is_directory(file))
      fail(EISDIR, "{}: is a folder: expected a file", file);
    if (::access(file.c_str(), W_OK) != 0)
      fail_errno("{}: cannot be written", file);
    return;
  }
  const std::string next = next_of(file);
  std::error_code ignored;
  const bool there = std::filesystem::exists(next, ignored);  // somebody else writes it now
  const FileDescriptor opened(::open(next.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
  if (!opened)
    fail_errno("{}: cannot be written", file);
  if (!there)
    ::unlink(next.c_str());
}

void write_run(const std::string& file, const Run& run) {
  replace_file(file, json::serialize(qapi::to_json(run)) + "\n");
}

void replace_file(const std::string& file, const std::string& text) {
  if (is_special(file)) {
    std::ofstream out(file);
    if (!(out << text << std::flush))
      fail(EIO, "{}: cannot be written", file);
    return;
  }
  const std::string next = next_of(file);
  {
    const File out = File::open(next, O_RDWR | O_CREAT | O_TRUNC);
    out.write_at(std::as_bytes(std::span(text)), 0);
  }
  if (::rename(next.c_str(), file.c_str()) != 0)
    fail_errno("{}: cannot be replaced", file);
}

}  // namespace nbdelta::sim
