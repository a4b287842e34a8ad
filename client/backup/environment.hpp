#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "client/backup/names.hpp"
#include "client/clock.hpp"
#include "client/pull/work.hpp"
#include "client/qmp/channel.hpp"
#include "image/disk.hpp"

/// What a session needs of the world outside, and nothing else: a simulator puts its own in the
/// place of each.
namespace nbdelta::client::backup {

/// Keeps something locked until it is destroyed.
class Lock {
 public:
  virtual ~Lock() = default;
};

/// What a qcow2 image's header and bitmap directory say.
struct Qcow2Summary {
  std::uint64_t size = 0;  // of the disk, bytes
  std::uint32_t snapshots = 0;
  std::string backing_format;                     // empty: not recorded
  std::vector<std::string> inconsistent_bitmaps;  // where no QEMU has it open
};

/// Paths are this machine's. All functions block, and throw Error with the path.
class Files {
 public:
  virtual ~Files() = default;

  /// A new qcow2 image without any data of its own, synced.
  virtual void create_overlay(const std::string& path, std::uint64_t disk_size,
                              const std::string& backing, image::Format backing_format) = 0;
  /// Whether the image has no data of its own: false where that cannot be told.
  virtual bool overlay_is_empty(const std::string& path) = 0;
  /// The image that a qcow2 image says it lies over, without symbolic links; nothing where it has
  /// none, or is no qcow2 image, or is not there. Throws Error where it cannot be read.
  virtual std::optional<std::string> backing_of(const std::string& path) = 0;
  /// Nothing where it is no qcow2 image. Throws Error where it cannot be read.
  virtual std::optional<Qcow2Summary> summary_of(const std::string& path) = 0;
  /// Throws Error where the image cannot be opened for reading.
  virtual void check_readable(const std::string& path) = 0;
  /// Throws Error where a plugin with the same `backing` could not open the image for reading, or
  /// anything that it needs: what is below it, its external data file. QEMU may write to it.
  virtual void check_servable(const std::string& path, image::Format format,
                              const std::vector<std::string>& backing) = 0;
  /// How many images a qcow2 image is read through: itself, and those below it. Throws Error where
  /// one of them cannot be opened.
  virtual std::size_t chain_length(const std::string& path) = 0;
  /// Throws Error where QEMU, or anybody who takes part in its image locking, has the image open.
  virtual void check_unused(const std::string& path) = 0;
  /// Returns when what was written to the file is durable.
  virtual void sync(const std::string& path) = 0;
  /// Bytes that the file takes on its storage.
  virtual std::uint64_t allocated(const std::string& path) = 0;
  /// When it was last written to: seconds since 1970; 0 where that cannot be told (block devices).
  virtual std::int64_t modified(const std::string& path) = 0;
  /// The same of the image that an overlay lies over, or its external data file's where that is
  /// later.
  virtual std::int64_t modified_below(const std::string& overlay) = 0;

  virtual bool exists(const std::string& path) = 0;
  /// Whether both paths lead to one file, which is there.
  virtual bool same(const std::string& path, const std::string& other) = 0;
  /// Nothing where there is no such file.
  virtual std::optional<std::string> read_text(const std::string& path) = 0;
  /// Replaces the file as a whole; durable on return.
  virtual void write_text(const std::string& path, const std::string& text) = 0;
  /// The file counts as written to now, where it is there.
  virtual void touch(const std::string& path) = 0;
  /// In the same folder; durable on return. A file that has the new name already goes.
  virtual void rename(const std::string& from, const std::string& to) = 0;
  /// Names in a folder; none where it does not exist.
  virtual std::vector<std::string> list(const std::string& folder) = 0;
  virtual void make_folder(const std::string& path) = 0;
  /// With what is in it. Durable on return, as the removal of a file is.
  virtual void remove_folder(const std::string& path) = 0;
  /// Nothing where there is no such file.
  virtual void remove(const std::string& path) = 0;
  /// The path without symbolic links; the path itself where that cannot be told.
  virtual std::string canonical(const std::string& path) = 0;
  /// Bytes that can still be written to the file system.
  virtual std::uint64_t free_space(const std::string& folder) = 0;
  /// Throws Error (EAGAIN) that says who has it.
  virtual std::unique_ptr<Lock> lock(const std::string& path) = 0;
};

/// Who may connect to an export: a Unix socket, or TCP.
struct Listen {
  std::string socket;  // absolute; empty: TCP
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;
  std::string tls_certificates;  // a folder as nbdkit takes it; empty: no TLS
};

/// How long a plugin serves.
enum class Lifetime : std::uint8_t {
  session,  // it ends with our process
  ended,    // until it is ended
};

/// One base image, served by our nbdkit plugin.
struct ServeRequest {
  std::string name;  // begins with "nbdelta-": the process is found by it
  std::string image;
  image::Format format = image::Format::qcow2;
  std::vector<std::string> backing;  // folders, see the plugin's backing=
  std::string map;                   // an NBD URI; empty: none
  std::string map_context;
  Listen listen;  // neither socket nor port: a socket that only we know
  Lifetime lifetime = Lifetime::session;
  bool direct = false;  // no server: pull() opens the image itself; requires no map, no Listen
};

/// A plugin that serves. It ends with the object, but for Lifetime::ended.
class Server {
 public:
  virtual ~Server() = default;
  virtual bool running() = 0;
  /// Of an export, as NBD clients take it.
  virtual std::string uri(std::string_view export_name) const = 0;
  /// Ends it, and its locks on the image; returns when it has ended.
  virtual void stop() = 0;
};

struct PullRequest {
  std::string uri;
  std::string target;  // a new qcow2 image
  std::string base;    // relative to the target's folder; empty: none
};

struct PullResult {
  std::uint64_t written = 0;  // bytes of data
  std::uint64_t zeroed = 0;   // bytes
  std::uint64_t extents = 0;
};

class Environment {
 public:
  virtual ~Environment() = default;

  virtual Clock& clock() = 0;
  virtual Files& files() = 0;
  /// Seconds since 1970, UTC, for the names and dates in manifests.
  virtual std::int64_t wall_clock() = 0;
  /// For names and ids that must not meet others.
  virtual std::uint64_t random() = 0;

  virtual asio::awaitable<std::unique_ptr<qmp::Channel>> connect_qmp(std::string address) = 0;
  /// Starts a guardian; it connects to the agent itself.
  virtual std::unique_ptr<qmp::Channel> start_guardian(const std::string& agent_address) = 0;
  /// Starts a process of its own that runs guard_commit() on the other end of the channel.
  virtual std::unique_ptr<qmp::Channel> start_commit_guard() = 0;
  /// Returns when the plugin takes connections. Throws Error with what it said.
  virtual asio::awaitable<std::unique_ptr<Server>> serve(ServeRequest request) = 0;
  /// Ends the plugins of earlier sessions that still serve one of these images (and hold its
  /// locks); returns how many when they have ended.
  virtual unsigned end_servers(const std::set<std::string>& images,
                               const std::function<bool(const SessionId&)>& is_ours) = 0;
  /// Removes what sessions that have died left in the folder of temporary files.
  virtual void remove_temporary(const std::function<bool(const SessionId&)>& is_ours) = 0;
  /// The target is complete and synced on return; it is gone where this throws.
  virtual asio::awaitable<PullResult> pull(PullRequest request, pull::Counters& counters) = 0;
  /// Commits an overlay that no QEMU has open into its backing file, and returns when that is
  /// durable. Throws Error with what was said.
  virtual void commit_offline(const std::string& overlay) = 0;
  /// Removes a bitmap of a qcow2 image that no QEMU has open. Throws Error with what was said.
  virtual void remove_bitmap_offline(const std::string& image, const std::string& bitmap) = 0;
  /// Whether the session should end early: its user wants it to.
  virtual bool stop_requested() = 0;
};

}  // namespace nbdelta::client::backup
