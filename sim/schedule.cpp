#include "sim/schedule.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "sim/random.hpp"

namespace nbdelta::sim {

std::string_view name_of(FaultKind kind) {
  static constexpr std::string_view kNames[] = {"kill nbdelta",
                                                "kill QEMU",
                                                "kill nbdkit",
                                                "kill the guardian",
                                                "kill nbdelta and the guardian",
                                                "kill nbdelta and QEMU",
                                                "kill everything",
                                                "interrupt",
                                                "command error",
                                                "late answer",
                                                "disconnect",
                                                "job error",
                                                "base full",
                                                "overlay full",
                                                "repository full",
                                                "file error",
                                                "nbdkit refuses",
                                                "slow freeze",
                                                "hung freeze",
                                                "failed freeze",
                                                "late freeze",
                                                "silent agent",
                                                "guest shuts down",
                                                "disk unplugged",
                                                "migration",
                                                "stop nbdelta",
                                                "agent error",
                                                "slow storage"};
  static_assert(std::size(kNames) == kFaultKinds);
  return kNames[static_cast<std::uint8_t>(kind)];
}

namespace {

constexpr std::uint8_t kDrawnFirst = static_cast<std::uint8_t>(FaultKind::guest_ends) + 1;

/// From a sequence of its own, so that the faults of a seed do not depend on it.
void draw_load(Schedule& schedule) {
  Random random(schedule.seed ^ 0x10ad);
  static constexpr Pattern kPatterns[] = {Pattern::sequential, Pattern::uniform, Pattern::uniform,
                                          Pattern::zipf, Pattern::database};
  schedule.pattern = random.pick(kPatterns);
  schedule.direct = random.chance(50);
  schedule.odd = random.chance(25);
  static constexpr std::uint32_t kExpire[] = {1, 20, 500, 30'000};
  schedule.expire_ms = random.pick(kExpire);
  static constexpr std::uint32_t kFree[] = {100, 100, 12, 4};
  schedule.free_granules = random.pick(kFree);
  static constexpr std::uint32_t kAtSteps[] = {0, 0, 5, 50};
  schedule.writes_at_steps = random.pick(kAtSteps);
}

/// Likewise, of the kinds that came later.
void draw_later_faults(Schedule& schedule) {
  Random random(schedule.seed ^ 0xfa17);
  for (SessionSetup& session : schedule.sessions)
    for (const FaultKind kind : {FaultKind::unplug, FaultKind::migration})
      if (random.chance(4))
        session.faults.push_back(
            {.kind = kind, .step = static_cast<std::uint32_t>(random.below(160)), .at = {}});
}

/// Likewise.
void draw_stops(Schedule& schedule) {
  Random random(schedule.seed ^ 0x5709);
  for (SessionSetup& session : schedule.sessions)
    if (random.chance(30))
      session.faults.push_back({.kind = FaultKind::stop_nbdelta,
                                .step = static_cast<std::uint32_t>(random.below(160)),
                                .at = {}});
}

/// Likewise. `begin` knows no --direct.
void draw_direct(Schedule& schedule) {
  Random random(schedule.seed ^ 0xd14ec7);
  for (SessionSetup& session : schedule.sessions)
    session.direct = random.chance(20) && !session.external;
}

/// Likewise.
void draw_latencies(Schedule& schedule) {
  Random random(schedule.seed ^ 0x1a7e);
  if (random.chance(50))
    return;
  static constexpr std::uint32_t kShort[] = {0, 20, 500, 5000};
  static constexpr std::uint32_t kLong[] = {50, 1000, 20'000, 100'000};
  static constexpr std::uint32_t kGranule[] = {50, 200, 1000, 5000};
  Latencies& latencies = schedule.latencies;
  latencies.message_us = random.pick(kShort);
  latencies.file_change_us = random.pick(kShort);
  latencies.command_us = random.pick(kShort);
  latencies.snapshot_us = random.pick(kShort);
  latencies.agent_us = random.pick(kLong);
  latencies.thaw_us = random.pick(kLong);
  latencies.granule_us = random.pick(kGranule);
  static constexpr std::uint32_t kEnd[] = {0, 500, 30'000};
  latencies.export_end_us = random.pick(kEnd);
}

/// Likewise: at steps that a number seldom hits.
void draw_named_steps(Schedule& schedule) {
  Random random(schedule.seed ^ 0x57e9a);
  static constexpr const char* kCommands[] = {
      "command block-dirty-bitmap-add",
      "command block-dirty-bitmap-enable",
      "command block-dirty-bitmap-merge",
      "command block-dirty-bitmap-remove",
      "command blockdev-del",
      "command blockdev-reopen",
      "command block-commit",
      "command job-cancel",
      "command job-complete",
      "command job-dismiss",
      "command job-finalize",
      "command change-backing-file",
      "command block-export-add",
      "command block-export-del",
      "command nbd-server-start",
      "command nbd-server-stop",
      "command cont",
      "command stop",
      "command transaction",
  };
  static constexpr FaultKind kAtCommands[] = {FaultKind::command_error,  FaultKind::command_error,
                                              FaultKind::kill_nbdelta,   FaultKind::kill_qemu,
                                              FaultKind::disconnect,     FaultKind::answer_late,
                                              FaultKind::kill_everything};
  static constexpr const char* kOfTheAgent[] = {
      "agent: guest-sync-delimited",  "agent: guest-fsfreeze-status",
      "agent: guest-fsfreeze-freeze", "agent has answered guest-fsfreeze-freeze",
      "agent: guest-fsfreeze-thaw",   "agent has answered guest-fsfreeze-thaw"};
  static constexpr FaultKind kAtTheAgent[] = {
      FaultKind::agent_error,   FaultKind::agent_error,  FaultKind::kill_nbdelta,
      FaultKind::kill_guardian, FaultKind::interrupt,    FaultKind::kill_nbdelta_and_guardian,
      FaultKind::kill_qemu,     FaultKind::stop_nbdelta, FaultKind::kill_everything};
  for (SessionSetup& session : schedule.sessions) {
    if (random.chance(15))
      session.faults.push_back(
          {.kind = random.pick(kAtCommands), .step = 0, .at = random.pick(kCommands)});
    if (random.chance(10))
      session.faults.push_back(
          {.kind = random.pick(kAtTheAgent), .step = 0, .at = random.pick(kOfTheAgent)});
    if (random.chance(5))
      session.faults.push_back({.kind = FaultKind::storage_slow,
                                .step = static_cast<std::uint32_t>(random.below(160)),
                                .at = {}});
  }
}

/// Likewise: who puts things right is not spared.
void draw_faults_of_recovery(Schedule& schedule) {
  Random random(schedule.seed ^ 0x4ec0);
  static constexpr FaultKind kKinds[] = {FaultKind::kill_nbdelta,  FaultKind::kill_nbdelta,
                                         FaultKind::kill_qemu,     FaultKind::kill_everything,
                                         FaultKind::command_error, FaultKind::disconnect,
                                         FaultKind::job_error,     FaultKind::interrupt,
                                         FaultKind::file_error,    FaultKind::overlay_full};
  for (SessionSetup& session : schedule.sessions)
    if (random.chance(40))
      session.recover_faults.push_back({.kind = random.pick(kKinds),
                                        .step = static_cast<std::uint32_t>(random.below(80)),
                                        .at = {}});
  if (random.chance(50))
    schedule.offline_faults.push_back({.kind = FaultKind::kill_nbdelta,
                                       .step = static_cast<std::uint32_t>(random.below(40)),
                                       .at = {}});
  if (random.chance(20))
    schedule.offline_faults.push_back({.kind = FaultKind::overlay_full, .step = 0, .at = {}});
}

/// Likewise: what must come together to be seen, and seldom does.
void draw_pairs(Schedule& schedule) {
  Random random(schedule.seed ^ 0x9a125);
  struct Pair {
    Fault first;
    Fault second;
  };
  static const Pair kPairs[] = {
      {{FaultKind::kill_guardian, 0, "agent has answered guest-fsfreeze-freeze"},
       {FaultKind::answer_late, 0, "command transaction"}},
      {{FaultKind::kill_guardian, 0, "agent: guest-fsfreeze-freeze"},
       {FaultKind::answer_late, 0, "command transaction"}},
      {{FaultKind::command_error, 0, "command nbd-server-stop"},
       {FaultKind::plugin_refuses, 0, ""}},
      {{FaultKind::unplug, 0, "command transaction"},
       {FaultKind::kill_nbdelta, 0, "command change-backing-file"}},
      {{FaultKind::unplug, 0, "command transaction"},
       {FaultKind::kill_nbdelta, 0, "command blockdev-del"}},
  };
  for (SessionSetup& session : schedule.sessions)
    if (random.chance(5)) {
      const Pair& pair = random.pick(kPairs);
      session.faults.push_back(pair.first);
      session.faults.push_back(pair.second);
    }
}

std::string text_of(const Fault& fault) {
  return fault.at.empty() ? fmt::format("from step {} on: {}", fault.step, name_of(fault.kind))
                          : fmt::format("at '{}': {}", fault.at, name_of(fault.kind));
}

}  // namespace

Schedule Schedule::of_seed(std::uint64_t seed) {
  Random random(seed);
  Schedule schedule;
  schedule.seed = seed;
  const std::uint64_t disks = 1 + random.below(3);
  for (std::uint64_t i = 0; i < disks; ++i)
    schedule.disks.push_back({.format = random.chance(65) ? "qcow2" : "raw",
                              .granules = 4 + random.below(13),
                              .has_backing = random.chance(15),
                              .by_drive = random.chance(25)});
  for (DiskSetup& disk : schedule.disks)
    if (disk.format == "raw")
      disk.has_backing = false;
  schedule.by_overlay = random.chance(40);
  static constexpr const char* kQuiesce[] = {"auto", "auto", "no", "require"};
  schedule.quiesce = random.pick(kQuiesce);
  schedule.old_qemu = random.chance(60);
  static constexpr std::uint32_t kPauses[] = {200, 1000, 3000, 10000, 1000000};
  schedule.write_pause_us = random.pick(kPauses);
  if (random.chance(15))
    schedule.commit_deadline_ms = 1 + static_cast<std::uint32_t>(random.below(20));
  const std::uint64_t sessions = 2 + random.below(3);
  for (std::uint64_t i = 0; i < sessions; ++i) {
    SessionSetup session;
    session.full = i != 0 && random.chance(5);
    session.external = random.chance(12);
    session.fails = session.external && random.chance(40);
    session.recover_after = random.chance(50);
    session.writes_before = static_cast<std::uint32_t>(random.below(12));
    const std::uint64_t faults = random.chance(25) ? 0 : 1 + random.below(2);
    for (std::uint64_t k = 0; k < faults; ++k)
      session.faults.push_back({.kind = static_cast<FaultKind>(random.below(kDrawnFirst)),
                                .step = static_cast<std::uint32_t>(random.below(160)),
                                .at = {}});
    schedule.sessions.push_back(std::move(session));
  }
  draw_load(schedule);
  draw_later_faults(schedule);
  draw_stops(schedule);
  draw_direct(schedule);
  draw_latencies(schedule);
  draw_named_steps(schedule);
  draw_faults_of_recovery(schedule);
  draw_pairs(schedule);
  return schedule;
}

std::string Schedule::text() const {
  std::string text = fmt::format(
      "seed {}: tracking {}, quiesce {}, QEMU {}, commit deadline {} ms, {} granules free\n"
      "  guest: {}{}{}, a write each {} us, written back after {} ms, and at {} % of the steps\n",
      seed, by_overlay ? "overlay" : "bitmap", quiesce, old_qemu ? "7.2" : "10.0",
      commit_deadline_ms, free_granules, pattern_names()[static_cast<std::size_t>(pattern)],
      direct ? ", direct" : "", odd ? ", parts of granules" : "", write_pause_us, expire_ms,
      writes_at_steps);
  text += fmt::format(
      "  us: a message {}, a file's change {}, a command {}, a snapshot {}, the agent {}, a thaw "
      "{}, a granule {}, an export's end {}\n",
      latencies.message_us, latencies.file_change_us, latencies.command_us, latencies.snapshot_us,
      latencies.agent_us, latencies.thaw_us, latencies.granule_us, latencies.export_end_us);
  for (const DiskSetup& disk : disks)
    text += fmt::format("  disk: {}, {} granules{}{}\n", disk.format, disk.granules,
                        disk.has_backing ? ", over a backing file" : "",
                        disk.by_drive ? ", by -drive" : "");
  for (const SessionSetup& session : sessions) {
    text +=
        fmt::format("  session: {} writes before{}{}{}{}{}\n", session.writes_before,
                    session.full ? ", --full" : "", session.direct ? ", --direct" : "",
                    session.external ? ", begin and end" : "", session.fails ? " --failure" : "",
                    session.recover_after ? ", then recover" : "");
    for (const Fault& fault : session.faults)
      text += fmt::format("    {}\n", text_of(fault));
    for (const Fault& fault : session.recover_faults)
      text += fmt::format("    in recover, {}\n", text_of(fault));
  }
  for (const Fault& fault : offline_faults)
    text += fmt::format("  in recover --offline, {}\n", text_of(fault));
  return text;
}

}  // namespace nbdelta::sim
