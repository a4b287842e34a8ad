#pragma once

#include <libnbd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/error.hpp"
#include "client/asio.hpp"
#include "image/status_reply.hpp"

namespace nbdelta::client::nbd {

/// The connection is gone (closed, broken, silent for too long, or the server talked nonsense):
/// what was in flight may be tried again on a new one.
class ConnectionLost : public Error {
 public:
  using Error::Error;
};

/// Which of a server's exports is wanted.
enum class View : std::uint8_t {
  as_named,    // the URI's
  whole_disk,  // the URI's, or where that is a changed view, "image" beside it
  packed,      // the packed export beside the URI's
};

struct ConnectOptions {
  std::string uri;
  View view = View::as_named;
  std::string bitmap_context;  // "qemu:dirty-bitmap:NAME"; empty: none
  std::chrono::milliseconds timeout{60'000};
};

/// Why the last call of libnbd in this thread failed.
std::string libnbd_error();

/// What the server offered.
struct Export {
  std::uint64_t size = 0;
  std::string description;
  std::uint64_t minimum_block = 1;
  std::uint64_t maximum_block = 0;  // bytes of one read or write
  bool changed_view = false;        // HOLE without ZERO means unchanged
  bool packed = false;              // a changed view's, as a packed export
  bool of_our_plugin = false;       // by its description
  bool has_allocation = false;      // base:allocation
  bool has_bitmap = false;          // the context that was asked for
  bool long_status = false;         // block status of more than 2^32-1 bytes
  bool multi_conn = false;
  bool read_only = false;
  bool can_zero = false;
  bool can_flush = false;

  /// Its map says what has changed, rather than what is allocated.
  bool shows_changes() const { return changed_view || has_bitmap; }
};

/// What came back for one block status request, unchecked.
struct StatusReply {
  std::vector<image::StatusEntry> allocation;
  std::vector<image::StatusEntry> bitmap;
  bool damaged = false;  // a context answered twice, or with more than can be right
};

/// One connection to an NBD server: a libnbd handle driven by an Asio loop.
///
/// Invariants
/// 1. Used by the loop's one thread only.
/// 2. Every operation completes: with the server's answer, or with ConnectionLost once the
///    handle is dead, once lose() was called, or when commands are in flight and nothing moved
///    for ConnectOptions::timeout.
/// 3. After the loss libnbd is not called again until the handle is closed; so it touches no
///    buffer of an operation that has completed.
/// 4. The descriptor that Asio waits on is a duplicate: libnbd may close its own at any time.
///
/// Operations throw ConnectionLost, or Error (the server's errno) where the server answered with an
/// error; messages name the server, what was asked and where. Buffers must live until then.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  static std::shared_ptr<Connection> make(asio::io_context& loop, ConnectOptions options);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Connects and negotiates; once, before all else.
  asio::awaitable<void> connect();

  asio::awaitable<void> read(std::span<std::byte> out, std::uint64_t offset);
  asio::awaitable<void> write(std::span<const std::byte> data, std::uint64_t offset);
  asio::awaitable<void> zero(std::uint64_t offset, std::uint64_t length);
  asio::awaitable<void> flush();
  asio::awaitable<StatusReply> block_status(std::uint64_t offset, std::uint64_t length);

  /// Says goodbye without waiting for anything.
  void disconnect() noexcept;

  /// Gives the connection up; what is in flight completes with ConnectionLost.
  void lose(std::string_view reason);

  /// The same a little later: what is in flight may still be answered. Servers do not take it well
  /// when a client leaves in the middle (nbdkit 1.32 may abort).
  void lose_soon(std::string_view reason);

  bool lost() const { return !lost_reason_.empty(); }
  const Export& negotiated() const { return export_; }
  const std::string& name() const { return options_.uri; }
  const asio::io_context& loop() const { return loop_; }

 private:
  struct CloseHandle {
    void operator()(nbd_handle* handle) const { nbd_close(handle); }
  };
  /// Receives 0, or why the operation failed (an errno value). Never assign one: the move
  /// assignment of Boost 1.81 recurses without end.
  using Handler = asio::any_completion_handler<void(int)>;
  /// What an operation asks for, for messages.
  struct Request {
    std::string_view verb;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
  };

  Connection(asio::io_context& loop, ConnectOptions options);

  void configure();
  void begin_connecting();
  asio::awaitable<void> negotiate();
  asio::awaitable<void> use_whole_disk();
  void use_packed();
  asio::awaitable<bool> is_changed_view();
  void learn_export();
  void learn_block_sizes();
  asio::awaitable<void> until_negotiating();

  /// Calls libnbd with the callback; -1 where it refuses.
  using Issue = std::function<std::int64_t(nbd_completion_callback)>;
  asio::awaitable<int> perform(Issue issue);
  [[noreturn]] void fail_request(int error, const Request& request) const;
  [[noreturn]] void fail_lost() const;

  void watch_descriptor();
  void arm();
  void wait_for(asio::posix::stream_descriptor::wait_type type);
  void on_ready();
  void after_progress();
  void notice_loss();
  void deliver();
  void arm_watchdog();
  void on_watchdog();
  bool busy() const { return !pending_.empty() || connecting_.has_value(); }
  unsigned ready_direction() const;

  asio::io_context& loop_;
  ConnectOptions options_;
  std::unique_ptr<nbd_handle, CloseHandle> handle_;
  Export export_;
  std::string lost_reason_;

  asio::posix::stream_descriptor descriptor_;
  std::uint64_t watched_inode_ = 0;  // of the socket behind descriptor_
  std::uint64_t generation_ = 0;     // of descriptor_; a wait on an earlier one says nothing
  bool waiting_read_ = false;
  bool waiting_write_ = false;

  asio::steady_timer patience_;  // of lose_soon()
  asio::steady_timer watchdog_;
  bool watching_ = false;
  std::chrono::steady_clock::time_point last_progress_;

  struct Done {
    std::uint64_t id = 0;
    int error = 0;
  };
  struct Completion;
  std::uint64_t next_id_ = 0;
  std::unordered_map<std::uint64_t, Handler> pending_;
  std::vector<Done> done_;  // libnbd has called back, the coroutine is not yet resumed
  bool delivering_ = false;
  std::optional<Handler> connecting_;
};

}  // namespace nbdelta::client::nbd
