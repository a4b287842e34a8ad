#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "client/clock.hpp"
#include "sim/guest.hpp"
#include "sim/json_place.hpp"

namespace nbdelta::sim {

struct ScenarioDisk {
  std::string name;              // letters, digits, '-' and '_'; at most 20
  std::uint64_t size = 0;        // bytes; a multiple of kGranule
  std::string format = "qcow2";  // or "raw"
  bool backing = false;          // its image has one below it, with half of its data
  bool by_drive = false;         // QEMU makes the node names up

  static constexpr std::uint64_t kGranule = 65536;
};

/// What QEMU takes, on the host that is meant.
struct QemuSetup {
  std::string version = "7.2";                               // or "10.0"
  Clock::Duration command = std::chrono::microseconds(100);  // of QMP
  Clock::Duration snapshot = std::chrono::milliseconds(3);   // of each disk, in the transaction
  double jitter = 0.2;                                       // see StorageSetup::jitter
};

/// The guest agent, but for what the guest itself takes to freeze.
struct AgentSetup {
  Clock::Duration latency = std::chrono::microseconds(500);  // of each command
  Clock::Duration thaw = std::chrono::milliseconds(6);       // of each disk's file system
  double jitter = 0.2;  // of both; of the freeze, see GuestSetup
};

/// A guest and what it does, as a person writes it down (docs/simulator.md).
struct Scenario {
  static constexpr std::string_view kShortestDuration = "1 s";
  static constexpr std::string_view kLongestDuration = "24 h";

  std::string name;  // of the file, without its ending
  QemuSetup qemu;
  std::vector<ScenarioDisk> disks;
  AgentSetup agent;
  GuestSetup guest;
  Clock::Duration duration = std::chrono::seconds(60);  // between two backups
  std::uint64_t seed = 1;
};

/// JSON. `file` is for messages, and traces' paths are relative to its folder. Throws Error
/// (EINVAL) that says "FILE:LINE:COLUMN: POINTER: what is wrong, and what is allowed", or
/// "OPTION: …" where the value is from one.
Scenario parse_scenario(std::string_view text, const std::string& file,
                        const OptionNames& options = {});
Scenario read_scenario(const std::string& file);

}  // namespace nbdelta::sim
