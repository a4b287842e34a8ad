#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/clock.hpp"

namespace nbdelta::sim {

using client::Clock;

/// A freeze window as QEMU and the guest agent saw it, whatever nbdelta says of it: from the moment
/// that the agent took up the freeze until it had answered the first thaw.
struct ObservedWindow {
  Clock::Duration length{};
  Clock::Duration agent{};           // in the freeze and in the thaw
  Clock::Duration qemu{};            // in one transaction, the first
  std::vector<std::string> besides;  // commands, files and processes that none of these are

  /// What neither the agent nor QEMU needed.
  Clock::Duration own() const { return length - agent - qemu; }
};

/// Is told of all that happens on a machine. For one backup, and one thread.
class WindowWatch {
 public:
  /// The agent has carried out a command.
  void agent_answered(std::string_view command, Clock::Time begun, Clock::Time now);
  /// QEMU has.
  void qemu_answered(std::string_view command, Clock::Time begun, Clock::Time now);
  /// nbdelta does something that needs neither.
  void did(const std::string& what);
  void frozen(bool frozen, Clock::Time now);

  /// Nothing where there was no freeze, or no thaw.
  const std::optional<ObservedWindow>& window() const { return window_; }
  /// That the guest's file systems were frozen at a stretch, also where they still are.
  Clock::Duration longest_freeze(Clock::Time now) const;

 private:
  std::optional<Clock::Time> open_since_;
  bool switched_ = false;
  ObservedWindow now_;
  std::optional<ObservedWindow> window_;
  std::optional<Clock::Time> frozen_since_;
  Clock::Duration longest_freeze_{};
};

}  // namespace nbdelta::sim
