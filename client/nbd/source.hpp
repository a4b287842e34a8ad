#pragma once

#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include "client/asio.hpp"
#include "client/nbd/connection.hpp"
#include "image/packed.hpp"

namespace nbdelta::client::nbd {

/// How long to wait before the next attempt, and when to give up.
struct RetryPolicy {
  unsigned attempts = 5;  // in a row, without anything gained
  std::chrono::milliseconds first_pause{100};
  std::chrono::milliseconds longest_pause{10'000};

  /// Before attempt 0, 1, ...: doubles up to the longest.
  std::chrono::milliseconds pause(unsigned attempt) const;
};

/// What a packed export begins with (docs/extents.md, "Packed exports").
struct PackedExport {
  image::PackedLayout layout;
  image::ExtentMap map;  // as read_map()'s
};

/// The server shows something else than it did before, or than on another connection.
class OtherExport : public Error {
 public:
  using Error::Error;
};

/// One connection to the server that is pulled from, with the loop that drives it; made anew when
/// it was lost. For one thread; all functions block, and throw Error (ECANCELED) once a stop is
/// requested.
///
/// Invariants
/// 1. After the first connect() the export never changes its size, its kind or its description,
///    with which nbdkit-delta-plugin says what it shows; a server that comes back with another is
///    an OtherExport.
/// 2. While packed_data() says so the packed export has the map that was read from it, whatever
///    became of the server meanwhile.
class Source {
 public:
  Source(ConnectOptions options, RetryPolicy policy, std::stop_token stop);
  /// Says goodbye.
  ~Source();

  /// What one source knows and another of the same export is to keep to.
  struct Known {
    ConnectOptions options;
    std::optional<Export> exported;
    std::optional<image::PackedLayout> packed;
    std::optional<Export> view;  // where `packed` is
  };
  const Known& known() const { return known_; }
  Source(Known known, RetryPolicy policy, std::stop_token stop);

  /// The first attempt; throws ConnectionLost where nobody answers. `give_up` is a second reason to
  /// stop.
  void connect(const std::stop_token& give_up = {});

  /// After a loss: pauses and tries until the policy says that it is enough; then throws `why`, or
  /// what the last attempt failed with.
  void reconnect(const ConnectionLost& why);

  /// Turns from a changed view of nbdkit-delta-plugin to the packed export beside it, and reads
  /// what that begins with. None where there is no such view, no such export, or one that does not
  /// fit the view; then nothing has changed.
  std::optional<PackedExport> turn_to_packed();
  /// From there back to the view. A source does so by itself where the server, once it is connected
  /// to again, has no packed export any more, or one with another map.
  void turn_back();
  /// Where the data begins; none where reads are of the disk.
  std::optional<std::uint64_t> packed_data() const {
    return known_.packed ? std::optional(known_.packed->data()) : std::nullopt;
  }

  /// Forgets earlier attempts: something was gained since.
  void made_progress() { attempts_ = 0; }

  /// Runs coroutines on the loop until all have ended; throws the first exception. A stop makes
  /// their operations fail.
  void run(std::vector<asio::awaitable<void>> tasks, const std::stop_token& give_up = {});

  Connection& connection() { return *connection_; }
  asio::io_context& loop() { return loop_; }
  const Export& negotiated() const { return *known_.exported; }
  const ConnectOptions& options() const { return known_.options; }

 private:
  void pause();
  void connect_once(const std::stop_token& give_up);
  void check_same() const;
  void be_the_view_again();
  PackedExport read_packed(const Export& view);
  image::PackedLayout read_packed_layout(const std::stop_token& give_up);
  void read_all(std::span<std::byte> out, std::uint64_t offset, const std::stop_token& give_up);

  Known known_;
  RetryPolicy policy_;
  std::stop_token stop_;
  asio::io_context loop_{1};
  std::shared_ptr<Connection> connection_;
  unsigned attempts_ = 0;
};

}  // namespace nbdelta::client::nbd
