#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qapi/command.hpp"

/// Nodes that come and go, and jobs (QEMU qapi/block-core.json, qapi/job.json).
namespace nbdelta::qapi {

/// A format node.
struct BlockdevAdd {
  static constexpr std::string_view kName = "blockdev-add";
  using Result = Nothing;
  std::string driver;
  std::string node_name;
  std::optional<json::value> file;     // a node name, or the definition of a file node
  std::optional<json::value> backing;  // null: none, whatever the header says
  std::optional<bool> read_only;
  std::optional<std::string> discard;
  struct Cache {
    std::optional<bool> direct;
    template <class Visitor>
    void fields(Visitor& visit) {
      visit("direct", direct);
    }
  };
  std::optional<Cache> cache;  // of the file node too
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("driver", driver);
    visit("node-name", node_name);
    visit("file", file);
    visit("backing", backing);
    visit("read-only", read_only);
    visit("discard", discard);
    visit("cache", cache);
  }
};

/// Options that are left out get their defaults.
struct BlockdevReopen {
  static constexpr std::string_view kName = "blockdev-reopen";
  using Result = Nothing;
  std::vector<json::object> options;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("options", options);
  }
};

struct BlockdevDel {
  static constexpr std::string_view kName = "blockdev-del";
  using Result = Nothing;
  std::string node_name;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node-name", node_name);
  }
};

struct BlockCommit {
  static constexpr std::string_view kName = "block-commit";
  using Result = Nothing;
  std::optional<std::string> job_id;
  std::string device;  // the active node, or a device
  std::optional<std::string> base_node;
  std::optional<std::string> top_node;      // below the active node: an intermediate commit
  std::optional<std::string> backing_file;  // for the header of the image over top-node
  std::optional<std::int64_t> speed;        // bytes a second
  std::optional<bool> auto_finalize;
  std::optional<bool> auto_dismiss;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("job-id", job_id);
    visit("device", device);
    visit("base-node", base_node);
    visit("top-node", top_node);
    visit("backing-file", backing_file);
    visit("speed", speed);
    visit("auto-finalize", auto_finalize);
    visit("auto-dismiss", auto_dismiss);
  }
};

/// Writes another name into an image's header, and opens nothing (QEMU qapi/block-core.json). The
/// backing file's format becomes the image's own. Refused while a job works on `device`.
struct ChangeBackingFile {
  static constexpr std::string_view kName = "change-backing-file";
  using Result = Nothing;
  std::string device;      // the active node, or a device
  std::string image_node;  // the image whose header is changed: `device`, or below it
  std::string backing_file;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("device", device);
    visit("image-node-name", image_node);
    visit("backing-file", backing_file);
  }
};

/// A line for the human monitor (QEMU qapi/misc.json); the result is what it prints.
struct HumanMonitorCommand {
  static constexpr std::string_view kName = "human-monitor-command";
  using Result = std::string;
  std::string command_line;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("command-line", command_line);
  }
};

struct JobComplete {
  static constexpr std::string_view kName = "job-complete";
  using Result = Nothing;
  std::string id;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("id", id);
  }
};

struct JobDismiss {
  static constexpr std::string_view kName = "job-dismiss";
  using Result = Nothing;
  std::string id;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("id", id);
  }
};

/// From "pending" on, of a job without auto-finalize.
struct JobFinalize {
  static constexpr std::string_view kName = "job-finalize";
  using Result = Nothing;
  std::string id;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("id", id);
  }
};

struct JobCancel {
  static constexpr std::string_view kName = "job-cancel";
  using Result = Nothing;
  std::string id;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("id", id);
  }
};

/// "JobInfo".
struct JobInfo {
  std::string id;
  std::string type;
  std::string
      status;  // created running paused ready standby waiting pending aborting concluded null
  std::uint64_t current_progress = 0;
  std::uint64_t total_progress = 0;
  std::optional<std::string> error;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("id", id);
    visit("type", type);
    visit("status", status);
    visit("current-progress", current_progress);
    visit("total-progress", total_progress);
    visit("error", error);
  }
};

struct QueryJobs {
  static constexpr std::string_view kName = "query-jobs";
  using Result = std::vector<JobInfo>;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

struct BlockSetWriteThreshold {
  static constexpr std::string_view kName = "block-set-write-threshold";
  using Result = Nothing;
  std::string node_name;
  std::uint64_t write_threshold = 0;  // bytes of the image file; 0: none
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node-name", node_name);
    visit("write-threshold", write_threshold);
  }
};

struct RunState {
  bool running = false;
  std::string status;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("running", running);
    visit("status", status);
  }
};

struct QueryStatus {
  static constexpr std::string_view kName = "query-status";
  using Result = RunState;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// Returns when the guest's processors stand and all that is in flight is done and flushed.
struct Stop {
  static constexpr std::string_view kName = "stop";
  using Result = Nothing;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

struct Cont {
  static constexpr std::string_view kName = "cont";
  using Result = Nothing;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// An event.
struct JobStatusChange {
  static constexpr std::string_view kName = "JOB_STATUS_CHANGE";
  std::string id;
  std::string status;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("id", id);
    visit("status", status);
  }
};

/// An event.
struct BlockJobCompleted {
  static constexpr std::string_view kName = "BLOCK_JOB_COMPLETED";
  std::string device;  // the job
  std::uint64_t length = 0;
  std::uint64_t offset = 0;
  std::optional<std::string> error;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("device", device);
    visit("len", length);
    visit("offset", offset);
    visit("error", error);
  }
};

/// An event.
struct BlockWriteThresholdEvent {
  static constexpr std::string_view kName = "BLOCK_WRITE_THRESHOLD";
  std::string node_name;
  std::uint64_t amount_exceeded = 0;
  std::uint64_t write_threshold = 0;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node-name", node_name);
    visit("amount-exceeded", amount_exceeded);
    visit("write-threshold", write_threshold);
  }
};

}  // namespace nbdelta::qapi
