#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <initializer_list>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "client/clock.hpp"
#include "client/qmp/channel.hpp"
#include "qapi/block_nodes.hpp"
#include "qapi/export_commands.hpp"
#include "qapi/job_commands.hpp"
#include "qapi/snapshot_commands.hpp"
#include "sim/block_graph.hpp"
#include "sim/commands.hpp"
#include "sim/outbox.hpp"
#include "sim/qmp_input.hpp"
#include "sim/write_done.hpp"

namespace nbdelta::sim {

namespace asio = boost::asio;
using client::Clock;

/// What QEMU takes its time for.
struct Timing {
  Clock::Duration command = std::chrono::microseconds(100);
  Clock::Duration transaction = std::chrono::microseconds(400);
  Clock::Duration snapshot{};  // each of a transaction's, on top
  Clock::Duration job_granule = std::chrono::microseconds(500);
  Clock::Duration export_end{};  // after its deletion, for what its clients leave
};

/// What becomes of an answer.
struct AnswerFate {
  Clock::Duration delay{};
  bool disconnect = false;  // instead of it
};

/// A write of the guest's.
struct GuestWrite {
  std::uint64_t granule = 0;
  WriteNumber number = 0;  // 0: zeros, of which an image knows that they are zeros
};

/// What somebody outside makes of QEMU: all of them may throw, which ends the command.
struct QemuHooks {
  /// Before a command is carried out; a returned text is its refusal.
  std::function<std::optional<std::string>(const qapi::Command&)> before_command =
      [](const qapi::Command&) { return std::nullopt; };
  /// A command has come; later, what it was answered: an error's text, or "". Never, where the
  /// connection or QEMU ends first.
  std::function<void(const qapi::Command&)> arrived = [](const qapi::Command&) {};
  std::function<void(const std::string& error)> answered = [](const std::string&) {};
  /// When a command was carried out.
  std::function<AnswerFate(const qapi::Command&)> after_command = [](const qapi::Command&) {
    return AnswerFate();
  };
  /// After an effect that a crash could fall upon: QEMU may be killed here.
  std::function<void(std::string_view what)> step = [](std::string_view) {};
  /// Whether a job fails when it copies next, or when it is finalized.
  std::function<std::optional<std::string>(const std::string& job)> job_error =
      [](const std::string&) { return std::nullopt; };
  /// Before a write of the guest's is carried out, which may be later than it was sent.
  std::function<void(const Device&, const GuestWrite&)> before_write = [](const Device&,
                                                                          const GuestWrite&) {};
  /// Whether a client is connected to an export.
  std::function<bool(const std::string& id)> export_in_use = [](const std::string&) {
    return false;
  };
  /// An event is sent to whoever is connected.
  std::function<void(const std::string& name, const qapi::json::object& data)> event =
      [](const std::string&, const qapi::json::object&) {};
  /// QEMU would have aborted: of a defect of its own, with that assertion.
  std::function<void(const std::string& assertion)> aborted = [](const std::string&) {};
  /// A transaction with a snapshot was carried out: the guest's disks are what they are now.
  std::function<void()> switched = [] {};
};

/// A job (QEMU qapi/job.json, "JobStatus").
struct Job {
  std::string id;
  std::string status = "created";
  std::string error;
  Node* main = nullptr;    // what it keeps from being worked on by another until it is dismissed
  Node* active = nullptr;  // what the guest writes to
  Node* top = nullptr;
  Node* base = nullptr;
  std::optional<std::string> backing_file;
  bool intermediate = false;  // the guest does not write to `top`
  bool base_was_read_only = false;
  bool auto_finalize = true;
  bool auto_dismiss = true;
  bool complete = false;
  bool cancelled = false;
  bool drains = false;       // holds the guest's writes back
  bool copying = false;      // a coroutine is at it
  bool in_force = false;     // it has begun, and not ended: nodes are blocked for it
  std::uint64_t serial = 0;  // of all jobs of this QEMU
  std::uint64_t speed = 0;   // bytes a second; 0: as fast as it can
  std::uint64_t length = 0;  // granules; of an active commit all that were to be copied so far
  std::uint64_t granule_size = 0;
  std::uint64_t done = 0;
  std::set<std::uint64_t> dirty;  // granules to be copied (again)
};

struct Export {
  std::string id;
  std::string name;
  Node* node = nullptr;
  std::vector<std::string> bitmaps;
  std::uint64_t serial = 0;  // of all exports of this QEMU
  bool ends = false;         // it takes no client any more
  bool above_job = false;    // of a commit that began later, which stands between it and its node
};

/// Stands in for a QEMU process: a block graph, the QMP commands that nbdelta uses, jobs, NBD
/// exports and events. For one thread: its coroutines run on `executor`, and end when that goes.
class FakeQemu {
 public:
  struct Version {
    std::uint64_t major = 7;
    std::uint64_t minor = 2;
    std::uint64_t micro = 22;
  };

  FakeQemu(asio::any_io_executor executor, Clock& clock, ImageHost& host, std::uint64_t seed);

  BlockGraph& graph() { return graph_; }
  const std::list<Job>& jobs() const { return jobs_; }
  const std::map<std::string, Export>& exports() const { return exports_; }
  Timing& timing() { return timing_; }
  const Timing& timing() const { return timing_; }
  QemuHooks& hooks() { return hooks_; }
  Version& version() { return version_; }

  /// One QMP connection, until the other end closes it. While one is open, another waits.
  asio::awaitable<void> serve(std::unique_ptr<client::qmp::Channel> channel);

  /// The guest's, through its device. A device that is drained holds it back; `done` is called when
  /// it was carried out, mostly at once, in the order of the writes; never, where QEMU dies first.
  /// Each is flushed at once where `flushes_writes` says so.
  void write(Device& device, GuestWrite write, WriteDone done);
  /// Whether writes are held back: a commit of what the guest writes to is pending, or the guest
  /// was told to stop.
  bool drained(const Device& device) const;

  /// The guest has let a device go that is not drained: it writes there no more.
  void unplug(Device& device);

  bool flushes_writes = true;
  /// What is added to the clock's time for the timestamps of events.
  Clock::Duration epoch{};
  /// When the last answer that was late came, or was given up: a real one's guest would not have
  /// been served either meanwhile.
  Clock::Time stalled_until() const { return stalled_until_; }

  const std::string& run_state() const { return run_state_; }
  void set_run_state(std::string state) { run_state_ = std::move(state); }
  /// A guest with werror=enospc waits after a write that failed, until it is told to go on.
  void stop_on_error() {
    if (run_state_ == "running")
      run_state_ = "io-error";
  }
  void go_on_after_error() {
    if (run_state_ == "io-error")
      run_state_ = "running";
  }
  void set_migration(std::string status) { migration_ = std::move(status); }
  /// The socket of the NBD server, where it runs.
  const std::optional<std::string>& nbd_server() const { return nbd_server_; }
  const Export* find_export(const std::string& name) const;

  /// What the command takes, whatever is wrong with it.
  Clock::Duration time_of(const qapi::Command& command) const;
  void emit(const std::string& name, qapi::json::object data);
  /// The one that a client of an export of `top` sees, and the node that has it. Throws BlockError.
  static std::pair<Node*, Bitmap*> exported_bitmap(Node& top, const std::string& name);
  /// SIGKILL. What is still on its way is not delivered.
  void die();

 private:
  struct Monitor {
    std::shared_ptr<Outbox> client;
    QmpInput input;
    bool negotiated = false;
    bool out_of_band = false;  // commands may come as exec-oob
  };

  void add_query_commands();
  void add_node_commands();
  void add_bitmap_commands();
  void add_job_commands();
  void add_export_commands();
  asio::awaitable<void> converse(Monitor& monitor);
  [[noreturn]] void refuse_out_of_band(const std::string& name) const;
  asio::awaitable<void> stall(Monitor& monitor, Clock::Duration duration);
  static asio::awaitable<void> listen(Monitor& monitor);
  asio::awaitable<std::string> answer(Monitor& monitor, QmpValue message);
  asio::awaitable<qapi::json::value> carry_out(Monitor& monitor, qapi::Command command);

  std::vector<qapi::DeviceInfo> query_block();
  qapi::Nothing blockdev_add(const qapi::BlockdevAdd& command);
  qapi::Nothing blockdev_reopen(const qapi::BlockdevReopen& command);
  struct Reopening;
  Reopening read_reopening(const qapi::json::object& given, const std::string& path);
  void change_backing(std::vector<Reopening>& reopenings);
  Node* new_backing(const Node& node, const std::optional<qapi::json::value>& given) const;
  void refuse_if_frozen(const Node& node) const;
  void refuse_other_file(const Node& node, const std::string& name) const;
  bool is_written_by_job(const Node& node) const;
  static Node& format_node(Node& node);
  qapi::Nothing change_backing_file(const qapi::ChangeBackingFile& command);
  std::string human_monitor_command(const qapi::HumanMonitorCommand& command);
  qapi::Nothing set_write_threshold(const qapi::BlockSetWriteThreshold& command);
  Node& root_node(const std::string& name);

  template <qapi::TypedCommand T>
  void add_action(std::function<Change(const T&)> act);
  qapi::Nothing transaction(const qapi::Transaction& command);
  Change snapshot(const qapi::BlockdevSnapshot& command);
  Change add_bitmap(const qapi::BlockDirtyBitmapAdd& command);
  Change remove_bitmap(const qapi::BlockDirtyBitmapRemove& command);
  Change merge_bitmaps(const qapi::BlockDirtyBitmapMerge& command);
  Change set_recording(const std::string& node, const std::string& bitmap, bool recording);
  Change set_bits(const std::string& node, const std::string& bitmap, std::vector<bool> bits);
  Bitmap& lookup_bitmap(const std::string& node, const std::string& bitmap);
  Bitmap& usable_bitmap(const std::string& node, const std::string& bitmap);
  Bitmap& writable_bitmap(const std::string& node, const std::string& bitmap);
  static void refuse_busy(const Bitmap& bitmap);
  static void refuse_inconsistent(const Bitmap& bitmap);
  void refuse_read_only(const std::string& node, const Bitmap& bitmap);

  qapi::Nothing export_add(const qapi::BlockExportAdd& command);
  qapi::Nothing export_del(const std::string& id, bool hard);
  void end_export(const std::string& id);
  qapi::Nothing stop_nbd_server();
  std::vector<std::string> export_ids() const;

  qapi::Nothing block_commit(const qapi::BlockCommit& command);
  Node& commit_device(const std::string& name);
  Node& node_in_chain(const std::string& name, Node& top);
  qapi::Nothing job_cancel(const qapi::JobCancel& command);
  Job& job_in(const std::string& id, std::string_view verb,
              std::initializer_list<std::string_view> states);
  Job& add_job(const qapi::BlockCommit& command, const std::string& id);
  void check_job_id(const std::string& id) const;
  void refuse_if_in_job(const Node& top, const Node& base) const;
  void take_nodes(Job& job);
  void give_up(Job& job);
  void block_nodes(Job& job);
  static bool is_between(const Job& job, const Node& node);
  asio::awaitable<void> cancel_job(std::uint64_t serial);
  qapi::json::object progress_of(const Job& job) const;
  void set_status(Job& job, const std::string& status);
  void start_copying(Job& job);
  Job* working_job(std::uint64_t serial);
  asio::awaitable<void> run_job(std::uint64_t serial);
  void converge(Job& job);
  void make_pending(Job& job);
  void conclude(Job& job, std::string error);
  void finish_active(Job& job);
  void finish_intermediate(Job& job);
  void release(Job& job);

  struct Use {
    unsigned needs;  // Permission
    unsigned shares;
    std::string by;
    const char* as;
  };
  void add_uses_of_job(const Job& job, const Node& node, std::vector<Use>& uses) const;
  std::vector<Use> uses_of(const Node& node) const;
  Use use_as_backing(const Node& node) const;
  void check_permissions(const Node& top) const;

  void write_now(Device& device, const GuestWrite& write, const WriteDone& done);
  void write_held_back();
  bool is_pending(const Device& device) const;
  void change_run_state(const std::string& state, const std::string& event);
  void mark_for_jobs(const Node& node, std::uint64_t granule);
  void tell_of_threshold(Node& node);

  asio::any_io_executor executor_;
  Clock* clock_;
  BlockGraph graph_;
  CommandTable commands_;
  Timing timing_;
  QemuHooks hooks_;
  Version version_;
  std::list<Monitor> monitors_;
  std::list<Job> jobs_;
  std::map<std::string, Export> exports_;
  /// Reads an action; what that returns carries it out.
  using ReadAction = std::function<std::function<Change()>(const qapi::json::object& data,
                                                           const std::string& path)>;
  std::map<std::string, ReadAction> actions_;
  std::optional<std::string> nbd_server_;
  std::string run_state_ = "running";
  std::string migration_;
  std::uint64_t last_job_ = 0;
  std::uint64_t last_export_ = 0;
  struct HeldWrite {
    Device* device;
    GuestWrite write;
    WriteDone done;
    bool sent = true;  // by a guest that ran
  };
  std::deque<HeldWrite> held_;
  Clock::Time stalled_until_{};
  bool dead_ = false;
};

/// The newer one of those that it knows to differ.
inline constexpr FakeQemu::Version kQemu10{10, 0, 13};

}  // namespace nbdelta::sim
