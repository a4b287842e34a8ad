#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sim/load.hpp"

namespace nbdelta::sim {

/// What goes wrong in a schedule.
enum class FaultKind : std::uint8_t {
  kill_nbdelta,
  kill_qemu,
  kill_plugin,
  kill_guardian,
  kill_nbdelta_and_guardian,
  kill_nbdelta_and_qemu,
  kill_everything,
  interrupt,      // the user's SIGINT
  command_error,  // QEMU refuses a command
  answer_late,    // a command is carried out, and its answer takes longer than anybody waits
  disconnect,     // a command is carried out, and the connection is cut
  job_error,
  base_full,  // no space left where the base is
  overlay_full,
  repository_full,
  file_error,  // of one of nbdelta's own files
  plugin_refuses,
  freeze_slow,
  freeze_hangs,
  freeze_fails,  // with an error, after it has frozen some file systems
  freeze_late,   // it is answered after the deadline
  agent_silent,
  guest_ends,    // it shuts down
  unplug,        // its last disk, until it is started again
  migration,     // one begins, and is given up after the session
  stop_nbdelta,  // SIGSTOP; SIGCONT follows
  agent_error,   // the agent refuses a command
  storage_slow,  // from then on
};
inline constexpr std::uint8_t kFaultKinds = static_cast<std::uint8_t>(FaultKind::storage_slow) + 1;

std::string_view name_of(FaultKind kind);

/// Happens at the first occasion of its kind from the given step on. Steps are counted from the
/// session's start over all processes: commands, files, jobs, servers.
struct Fault {
  FaultKind kind = FaultKind::kill_nbdelta;
  std::uint32_t step = 0;
  std::string at;  // only at steps of this name; empty: at any
};

/// How long what is quick takes.
struct Latencies {
  std::uint32_t message_us = 0;      // from one process to another
  std::uint32_t file_change_us = 0;  // with its fsync
  std::uint32_t command_us = 100;    // of QMP
  std::uint32_t snapshot_us = 0;     // each, beyond that
  std::uint32_t agent_us = 200;      // each command
  std::uint32_t thaw_us = 5000;
  std::uint32_t granule_us = 200;   // read by a pull; a job takes 2.5 times as long
  std::uint32_t export_end_us = 0;  // from an export's deletion until it is gone
};

/// One disk of the guest.
struct DiskSetup {
  std::string format = "qcow2";
  std::uint64_t granules = 16;
  bool has_backing = false;
  bool by_drive = false;  // QEMU makes the node names up
};

/// One session and what befalls it.
struct SessionSetup {
  bool full = false;
  bool external = false;  // begin, a copy, end
  bool fails = false;     // of an external one: end --failure
  bool direct = false;    // --direct: no nbdkit where there need not be one
  std::vector<Fault> faults;
  bool recover_after = false;         // else the next backup puts things right
  std::vector<Fault> recover_faults;  // of a first recover, which another follows
  std::uint32_t writes_before = 8;
};

/// All that a seed decides, so that it can be printed, replayed and made smaller.
struct Schedule {
  std::uint64_t seed = 0;
  std::vector<DiskSetup> disks;
  bool by_overlay = false;
  std::string quiesce = "auto";
  bool old_qemu = true;                // 7.2; else 10.0
  Pattern pattern = Pattern::uniform;  // of the guest's programs, one on each disk
  bool direct = false;                 // past its page cache
  bool odd = false;                    // requests that are no whole granules
  std::uint32_t expire_ms = 30'000;    // dirty pages are written back then
  std::uint32_t write_pause_us = 3000;
  std::uint32_t writes_at_steps = 0;  // percent of the steps: a write of the guest just before
  std::uint32_t commit_deadline_ms = 600'000;
  std::uint32_t free_granules = 100;  // QEMU tells when an overlay takes most of that
  Latencies latencies;
  std::vector<SessionSetup> sessions;
  std::vector<Fault> offline_faults;  // of each first 'recover --offline', which another follows

  static Schedule of_seed(std::uint64_t seed);
  std::string text() const;
};

}  // namespace nbdelta::sim
