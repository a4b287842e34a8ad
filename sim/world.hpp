#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "client/backup/session.hpp"
#include "sim/fake_agent.hpp"
#include "sim/fake_qemu.hpp"
#include "sim/guest.hpp"
#include "sim/host.hpp"
#include "sim/process.hpp"
#include "sim/qemu_disks.hpp"
#include "sim/random.hpp"
#include "sim/run_recorder.hpp"
#include "sim/schedule.hpp"
#include "sim/store.hpp"
#include "sim/unawaited.hpp"

namespace nbdelta::sim {

/// What each granule of each disk must read as: the number of the last write to it that was
/// acknowledged; 0 is zeros.
using DiskContents = std::vector<std::vector<WriteNumber>>;

/// What a schedule showed to be wrong.
class Violation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// All that is there in a schedule: the storage, QEMU with its guest and its agent, the processes
/// of nbdelta; and what must hold of them. For one thread.
class World final : public Host {
 public:
  explicit World(const Schedule& schedule);
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  ~World() override;

  /// The schedule's sessions are written down. The recorder must outlive this.
  void record(RunRecorder& recorder, RunRecorder::Detail detail);
  Clock::Time now() const { return time_.now(); }

  /// Runs the schedule. Throws Violation.
  void run();

  Store& store() override { return store_; }
  Random& random() override { return random_; }
  Process* qemu_process() override { return qemu_ ? &qemu_->process : nullptr; }
  FakeQemu* qemu() override { return qemu_ ? &qemu_->fake : nullptr; }
  FakeAgent* agent() override { return qemu_ ? &qemu_->agent : nullptr; }
  std::list<Plugin>& plugins() override { return plugins_; }
  Process& start_guardian_process() override;
  Costs costs() const override;
  Clock::Duration pull_time(bool changed) override;
  std::uint64_t free_space() const override {
    return schedule_.free_granules * MemoryImage::kGranule;
  }
  bool interrupted() const override { return interrupted_; }
  std::optional<FaultKind> strike(std::initializer_list<FaultKind> kinds) override;
  /// Counts, and kills whom it is time to kill. Throws Killed where that is `self`.
  void step(const std::string& what, Process* self) override;
  void removed(const std::string& path) override;

  std::uint64_t steps() const { return steps_; }
  const std::set<std::string>& seen() const { return seen_; }
  void note(std::string what) { seen_.insert(std::move(what)); }
  void log(std::string line);
  const std::vector<std::string>& lines() const { return log_; }

 private:
  static constexpr const char* kFolder = "/repo/vm";
  static constexpr Clock::Duration kLongestFreeze = std::chrono::seconds(60);
  static constexpr Clock::Duration kLatestFreeze = std::chrono::seconds(25);  // of FaultKind

  /// The guest's way to its disks: what it writes is recorded.
  class GuestDisks final : public Disks {
   public:
    explicit GuestDisks(World& world) : world_(&world) {}
    std::size_t count() const override { return world_->contents_.size(); }
    std::uint64_t granules(std::size_t disk) const override {
      return world_->contents_[disk].size();
    }
    std::uint64_t granule_size(std::size_t /*disk*/) const override {
      return MemoryImage::kGranule;
    }
    void write(std::size_t disk, std::uint64_t granule, Fill fill, WriteDone done) override {
      const WriteNumber number = fill == Fill::zeros ? 0 : ++world_->last_write_;
      world_->guest_write(disk, granule, number, done);
    }

   private:
    World* world_;
  };

  /// What the disks held when a session put its overlays over them.
  struct Switch {
    client::backup::SessionId session;
    DiskContents contents;
    std::set<std::size_t> absent;  // disks that were unplugged meanwhile
  };

  struct Qemu {
    Qemu(World& world, std::uint64_t seed);
    ~Qemu();
    Process process;
    FakeQemu fake;
    FakeAgent agent;
    GuestDisks disks;
    Guest guest;
  };

  std::string image_path(std::size_t disk) const;
  std::string disk_name(std::size_t disk) const;
  void create_disks();
  void start_qemu();
  void connect_agent();
  void connect_qemu();
  void connect_guest();
  void open_disks();
  void kill_qemu();
  void end_qemu();
  GuestSetup guest_setup() const;
  bool guest_lives() const { return qemu_ && !qemu_->process.doomed(); }
  void guest_write(std::size_t disk, std::uint64_t granule, WriteNumber number,
                   const WriteDone& done);
  void write_now(std::uint64_t count, Random& random);
  void write_between(const std::string& what, const Process* self);

  client::backup::Options options(const SessionSetup& session) const;
  void record_step();
  void run_session(const SessionSetup& session);
  void run_recover(bool must_work);
  void recover_with_faults(const std::vector<Fault>& faults);
  void begin_faults(const std::vector<Fault>& faults);
  void run_last_backup();
  bool run_in_process(const std::string& what,
                      const std::function<asio::awaitable<void>(client::backup::Environment&)>& job,
                      bool must_work);
  void run_until_ended(Process& process);
  void stop_nbdelta();
  /// It has been told to complete: the guest's writes wait, or will.
  bool commit_is_ending() const;
  asio::awaitable<void> let_nbdelta_go_on(std::uint64_t run);
  bool run_once();
  void check_failure(const Process& process);
  void bury();
  void let_pass(Clock::Duration duration);
  void await_guardians();
  void end_faults();
  void ensure_guest();
  std::vector<std::size_t> disks_to_recover();
  void recover_offline(const std::vector<std::size_t>& disks, bool must_work);
  void set_timing();
  void on_switch();
  void on_agent_step(const std::string& what);

  void see_event(const std::string& name, const qapi::json::object& data);
  void unplug_when_due();
  void replug();
  WriteNumber read_unplugged(std::size_t disk, std::uint64_t granule);
  void check_warnings(const SessionSetup& session, const client::backup::Report& report);

  void check_always();
  void check_window(const std::string& what, const Process* self);
  std::optional<client::repository::Manifest> latest_point() const;
  void check_removal(const qapi::BlockDirtyBitmapRemove& command);
  void check_held();
  void check_space();
  void check_points();
  void check_clean();
  WriteNumber read_file(const std::string& path, std::uint64_t granule);
  [[noreturn]] void violated(const std::string& what);

  Schedule schedule_;
  Random random_;
  Random step_random_;  // of its own, so that faults do not depend on it
  VirtualTime time_;
  Store store_;
  std::unique_ptr<Qemu> qemu_;
  std::unique_ptr<Process> nbdelta_;
  Process user_{time_, "the user"};
  std::list<std::unique_ptr<Process>> guardians_;
  std::list<Plugin> plugins_;
  std::vector<Fault> faults_;
  std::string current_step_;
  std::string agent_command_;  // the last that came
  bool storage_is_slow_ = false;
  std::uint64_t steps_ = 0;
  std::uint64_t session_start_ = 0;
  bool kill_qemu_ = false;
  bool end_qemu_ = false;
  bool interrupted_ = false;
  bool unplug_ = false;  // a disk, as soon as QEMU can
  bool migrating_ = false;
  bool told_of_migration_ = false;  // at the last question
  bool listens_ = false;            // a session, for events of the overlays that it has put on top
  bool told_of_threshold_ = false;  // meanwhile
  /// Disks, each with its chain of images then, until the guest is started again.
  std::map<std::size_t, std::vector<std::string>> unplugged_;
  bool guardian_was_killed_ = false;
  Clock::Time late_until_{};        // an answer of QEMU's
  bool thaw_is_disturbed_ = false;  // until the guest is thawed, and no freeze is on its way
  /// The session lost QEMU in its window: a guard of an earlier one may have waited for its turn.
  bool others_may_connect_ = false;
  bool journal_is_in_doubt_ = false;  // a file could not be written
  unsigned stops_ = 0;  // of nbdelta, and its deaths in a commit's last step: nobody else comes
  unsigned starts_ = 0;
  std::uint64_t runs_ = 0;  // of nbdelta: which one it is

  std::optional<std::string> violation_;  // the first
  DiskContents contents_;
  std::vector<Switch> switches_;
  WriteNumber last_write_ = 0;
  std::optional<Clock::Time> frozen_since_;
  std::optional<Clock::Time> held_since_;  // by a commit that is pending
  std::set<std::string> seen_;
  std::vector<std::string> log_;
  RunRecorder* recorder_ = nullptr;
  RunRecorder::Detail detail_ = RunRecorder::Detail::all;
  std::string outcome_;        // of the process that ran last
  std::uint64_t pulling_ = 0;  // bytes, since the last step
};

}  // namespace nbdelta::sim
