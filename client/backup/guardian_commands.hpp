#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qapi/command.hpp"

/// What a session asks of its guardian, over a socket, in the framing of QMP without a greeting.
/// Times are microseconds of the machine's monotonic clock.
namespace nbdelta::client::backup::guardian {

/// Brings the agent's channel in order.
struct Prepared {
  std::string agent_version;
  std::string presync;  // what came of it; empty: not asked for
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("agent-version", agent_version);
    visit("presync", presync);
  }
};

struct Prepare {
  static constexpr std::string_view kName = "prepare";
  using Result = Prepared;
  bool presync = false;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("presync", presync);
  }
};

struct Frozen {
  std::int64_t file_systems = 0;
  std::int64_t sent_us = 0;
  std::int64_t answered_us = 0;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("file-systems", file_systems);
    visit("sent-us", sent_us);
    visit("answered-us", answered_us);
  }
};

/// From here on the guardian thaws by itself `deadline_ms` later, and when the session is gone. An
/// error means that a thaw was sent already.
struct Freeze {
  static constexpr std::string_view kName = "freeze";
  using Result = Frozen;
  std::optional<std::vector<std::string>> mountpoints;  // absent: all
  std::int64_t deadline_ms = 0;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("mountpoints", mountpoints);
    visit("deadline-ms", deadline_ms);
  }
};

struct Thawed {
  std::int64_t file_systems = 0;
  std::int64_t sent_us = 0;  // the first thaw: before it everything was frozen
  std::int64_t answered_us = 0;
  bool by_deadline = false;  // the guardian did not wait to be asked
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("file-systems", file_systems);
    visit("sent-us", sent_us);
    visit("answered-us", answered_us);
    visit("by-deadline", by_deadline);
  }
};

/// Answered as soon as the agent has answered the thaw. Without a freeze before: for a guest that
/// a session may have left frozen.
struct Thaw {
  static constexpr std::string_view kName = "thaw";
  using Result = Thawed;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// Answered once the agent says `thawed`, or with an error when that takes long; the guardian goes
/// on trying then, also after the session has ended.
struct Confirm {
  static constexpr std::string_view kName = "confirm";
  using Result = qapi::Nothing;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// After a thaw that was not confirmed, of a guest that nobody has reason to think frozen: it is
/// left at that, and the guardian ends with the session.
struct Leave {
  static constexpr std::string_view kName = "leave";
  using Result = qapi::Nothing;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

}  // namespace nbdelta::client::backup::guardian
