#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/repository/manifest.hpp"

namespace nbdelta::sim {

// What a run was, for the report: docs/run.schema.json. Times are microseconds since its beginning.

inline constexpr std::string_view kToQemu = "qemu";
inline constexpr std::string_view kToAgent = "agent";
inline constexpr std::string_view kVirtual = "virtual";
inline constexpr std::string_view kReal = "real";
inline constexpr std::string_view kResultDone = "done";

/// A command, from its arrival at QEMU or the agent to its answer.
struct RunCommand {
  std::string to;
  std::string name;
  std::int64_t start_us = 0;
  std::optional<std::int64_t> end_us;  // absent: never answered
  std::optional<std::string> error;
  std::optional<std::uint64_t> snapshots;  // of a transaction: overlays put over disks
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("to", to);
    visit("name", name);
    visit("start-us", start_us);
    visit("end-us", end_us);
    visit("error", error);
    visit("snapshots", snapshots);
  }
};

struct RunInterval {
  std::int64_t start_us = 0;
  std::int64_t end_us = 0;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("start-us", start_us);
    visit("end-us", end_us);
  }
};

/// The requests that the guest's programs sent in a step of time.
struct RunLatency {
  std::int64_t start_us = 0;  // of the step
  std::uint64_t requests = 0;
  std::int64_t mean_us = 0;
  std::int64_t longest_us = 0;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("start-us", start_us);
    visit("requests", requests);
    visit("mean-us", mean_us);
    visit("longest-us", longest_us);
  }
};

struct RunAmount {
  std::int64_t at_us = 0;
  std::uint64_t bytes = 0;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("at-us", at_us);
    visit("bytes", bytes);
  }
};

struct RunFault {
  std::int64_t at_us = 0;
  std::string name;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("at-us", at_us);
    visit("name", name);
  }
};

/// One backup. The lists are in the order of their times.
struct RunSession {
  std::string name;
  std::optional<std::string> result;  // kResultDone, or what went wrong; absent: nobody knows
  std::int64_t start_us = 0;
  std::int64_t end_us = 0;
  std::vector<RunCommand> commands;
  std::vector<RunInterval> frozen;  // the guest's file systems
  std::vector<RunLatency> latency;
  std::vector<RunAmount> overlay;  // of all disks together
  std::vector<RunAmount> pulled;   // since the beginning of the session
  std::vector<RunFault> faults;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("name", name);
    visit("result", result);
    visit("start-us", start_us);
    visit("end-us", end_us);
    visit("commands", commands);
    visit("frozen", frozen);
    visit("latency", latency);
    visit("overlay", overlay);
    visit("pulled", pulled);
    visit("faults", faults);
  }
};

struct Run {
  static constexpr std::int64_t kVersion = 1;

  std::int64_t run_version = kVersion;
  std::string name;  // of the scenario
  std::string time = std::string(kVirtual);
  std::optional<std::uint64_t> seed;
  std::vector<RunSession> sessions;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("run-version", run_version);
    visit("name", name);
    visit("time", time);
    visit("seed", seed);
    visit("sessions", sessions);
  }
};

/// Also takes the manifest of a restore point, and what `nbdelta backup --json` prints: a run of
/// one session, of which the window alone is known. `file` is for messages. Throws Error (EINVAL)
/// that says what is wrong where: "FILE:LINE:COLUMN: …" or "FILE: run.sessions[2].end-us …".
Run parse_run(std::string_view text, const std::string& file);
/// At most 1 GiB.
Run read_run(const std::string& file);

/// The manifest's window as a session.
RunSession session_of(const client::repository::Manifest& manifest);

/// Throws Error where write_run() could not write it now: for those who run for long before.
void check_run_place(const std::string& file);

/// Replaces the file as a whole. Throws Error.
/// Replaces the file by one with this text, once that is complete.
void replace_file(const std::string& file, const std::string& text);

void write_run(const std::string& file, const Run& run);

}  // namespace nbdelta::sim
