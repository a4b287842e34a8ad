#pragma once

#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/backup/session.hpp"
#include "sim/guest.hpp"
#include "sim/host.hpp"
#include "sim/qemu_disks.hpp"
#include "sim/run_recorder.hpp"
#include "sim/scenario.hpp"
#include "sim/window_watch.hpp"

namespace nbdelta::sim {

/// What one backup came to.
struct RehearsedBackup {
  std::string refusal;  // why there is none: the guest was not frozen as long as it takes
  client::repository::Window window;  // as nbdelta says
  ObservedWindow observed;
  Clock::Duration longest_freeze{};  // at a stretch
  std::uint64_t overlay_bytes = 0;   // of all disks together, at the most
  Clock::Duration session{};         // from the first command to the overlay's removal
  Clock::Duration longest_stall{};   // of any request of the guest's programs
  bool overlay_kept = false;         // the guest wrote faster than a commit copies
};

/// What may go wrong while the guest is frozen.
enum class Mishap : std::uint8_t {
  none,
  switch_hangs,  // QEMU does not answer the transaction
  killed,        // nbdelta, while QEMU carries the transaction out
};

/// A scenario in virtual time: its guest is backed up by the real client/backup. Its disks are full
/// of data at the beginning. The storage is shared by the guest's writes, by pulls and by commits.
/// What nbdelta computes takes no time; what it waits for does, be it a message from one of its own
/// processes to another, a change of a file, or the start of a process. For one thread.
class Rehearsal final : public Host {
 public:
  /// From a process that is woken to the next one, over a Unix socket.
  static constexpr Clock::Duration kMessage = std::chrono::microseconds(20);
  /// Of nbdelta itself: fork, exec, the dynamic linker.
  static constexpr Clock::Duration kStart = std::chrono::milliseconds(5);

  /// `seed` is used instead of the scenario's.
  Rehearsal(const Scenario& scenario, std::uint64_t seed);
  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;
  ~Rehearsal() override;

  /// Backups from here on are written down as sessions; the recorder is used by all that lets time
  /// pass.
  void record(RunRecorder& recorder, RunRecorder::Detail detail);
  Clock::Time now() const { return time_.now(); }

  /// The guest goes on.
  void let_pass(Clock::Duration duration);
  /// The first one is full, the others are incremental. Throws Error where it fails, but not where
  /// the guest's freeze does: then all that the agent has to do is over.
  RehearsedBackup backup();
  /// A backup that goes wrong, and all that comes after it. Returns how long the guest was frozen
  /// for, or nothing where there was no switch that could go wrong; throws Error where it still is.
  std::optional<Clock::Duration> backup_with(Mishap mishap);
  /// How long the guest may be frozen in such a backup: until nbdelta's deadline, or until its
  /// death, and for a thaw.
  Clock::Duration longest_allowed(Mishap mishap) const;

  /// What a commit is given before the overlay stays.
  std::chrono::milliseconds commit_deadline = client::backup::Options().commit_deadline;

  const Guest& guest() const { return *guest_; }

  Store& store() override { return store_; }
  Random& random() override { return random_; }
  Process* qemu_process() override { return &qemu_process_; }
  FakeQemu* qemu() override { return &qemu_; }
  FakeAgent* agent() override { return &agent_; }
  std::list<Plugin>& plugins() override { return plugins_; }
  Process& start_guardian_process() override;
  Costs costs() const override;
  Clock::Duration pull_time(bool changed) override;
  std::uint64_t free_space() const override { return std::uint64_t{1} << 50; }
  void step(const std::string& what, Process* self) override;

 private:
  std::string image_path(const ScenarioDisk& disk) const;
  void create_disks();
  void connect();
  /// How the host is at this moment.
  void draw_times();
  /// Of a granule of a pull or a commit, which have many on their way.
  Clock::Duration storage_time(std::uint64_t bytes);
  bool run_once();
  std::exception_ptr run_session(client::backup::Report& report);
  RehearsedBackup refused(const std::exception_ptr& failure);
  std::uint64_t overlay_bytes() const;

  Scenario scenario_;
  Random random_;
  VirtualTime time_;
  Store store_;
  std::list<std::unique_ptr<Process>> guardians_;
  std::list<Plugin> plugins_;
  Process qemu_process_{time_, "QEMU"};
  FakeQemu qemu_;
  FakeAgent agent_;
  std::optional<QemuDisks> disks_;
  std::optional<Guest> guest_;
  std::unique_ptr<Process> nbdelta_;
  WindowWatch watch_;
  Mishap mishap_ = Mishap::none;
  std::uint64_t most_overlay_bytes_ = 0;
  std::uint64_t pulling_ = 0;  // bytes, since the last step
  RunRecorder* recorder_ = nullptr;
  RunRecorder::Detail detail_ = RunRecorder::Detail::all;
};

}  // namespace nbdelta::sim
