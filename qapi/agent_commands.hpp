#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qapi/command.hpp"

/// The guest agent's commands that are used here (QEMU qga/qapi-schema.json; members that are not
/// used are left out).
namespace nbdelta::qapi::agent {

struct GuestSyncDelimited {
  static constexpr std::string_view kName = "guest-sync-delimited";
  using Result = std::int64_t;
  std::int64_t id = 0;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("id", id);
  }
};

struct GuestPing {
  static constexpr std::string_view kName = "guest-ping";
  using Result = Nothing;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

struct SupportedCommand {
  std::string name;
  bool enabled = true;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("name", name);
    visit("enabled", enabled);
  }
};

struct AgentInfo {
  std::string version;
  std::vector<SupportedCommand> supported_commands;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("version", version);
    visit("supported_commands", supported_commands);
  }
};

struct GuestInfo {
  static constexpr std::string_view kName = "guest-info";
  using Result = AgentInfo;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// Returns "thawed" or "frozen".
struct GuestFsfreezeStatus {
  static constexpr std::string_view kName = "guest-fsfreeze-status";
  using Result = std::string;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// Returns the number of file systems that are frozen now.
struct GuestFsfreezeFreeze {
  static constexpr std::string_view kName = "guest-fsfreeze-freeze";
  using Result = std::int64_t;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

struct GuestFsfreezeFreezeList {
  static constexpr std::string_view kName = "guest-fsfreeze-freeze-list";
  using Result = std::int64_t;
  std::optional<std::vector<std::string>> mountpoints;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("mountpoints", mountpoints);
  }
};

/// Returns the number of file systems that were thawed.
struct GuestFsfreezeThaw {
  static constexpr std::string_view kName = "guest-fsfreeze-thaw";
  using Result = std::int64_t;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

struct StartedProcess {
  std::int64_t pid = 0;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("pid", pid);
  }
};

struct GuestExec {
  static constexpr std::string_view kName = "guest-exec";
  using Result = StartedProcess;
  std::string path;
  std::optional<std::vector<std::string>> arguments;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("path", path);
    visit("arg", arguments);
  }
};

struct ProcessStatus {
  bool exited = false;
  std::optional<std::int64_t> exit_code;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("exited", exited);
    visit("exitcode", exit_code);
  }
};

struct GuestExecStatus {
  static constexpr std::string_view kName = "guest-exec-status";
  using Result = ProcessStatus;
  std::int64_t pid = 0;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("pid", pid);
  }
};

}  // namespace nbdelta::qapi::agent
