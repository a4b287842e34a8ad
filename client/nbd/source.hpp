#pragma once

#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <stop_token>
#include <vector>

#include "client/asio.hpp"
#include "client/nbd/connection.hpp"

namespace nbdelta::client::nbd {

/// How long to wait before the next attempt, and when to give up.
struct RetryPolicy {
  unsigned attempts = 5;  // in a row, without anything gained
  std::chrono::milliseconds first_pause{100};
  std::chrono::milliseconds longest_pause{10'000};

  /// Before attempt 0, 1, ...: doubles up to the longest.
  std::chrono::milliseconds pause(unsigned attempt) const;
};

/// One connection to the server that is pulled from, with the loop that drives it; made anew when
/// it was lost. For one thread; all functions block, and throw Error (ECANCELED) once a stop is
/// requested.
///
/// Invariant: after the first connect() the export never changes its size or its kind; a server
/// that comes back with another is an Error.
class Source {
 public:
  Source(ConnectOptions options, RetryPolicy policy, std::stop_token stop);
  /// Says goodbye.
  ~Source();

  /// What the export must be like, where that is known before the first connect().
  void expect(const Export& known) { export_ = known; }

  /// Leaves the server for another export of it: its first attempt, as connect().
  void turn_to(View view);

  /// The first attempt; throws ConnectionLost where nobody answers. `give_up` is a second reason to
  /// stop.
  void connect(const std::stop_token& give_up = {});

  /// After a loss: pauses and tries until the policy says that it is enough; then throws `why`, or
  /// what the last attempt failed with.
  void reconnect(const ConnectionLost& why);

  /// Throws Error where the export is another than `known`.
  void check_same(const Export& known) const;

  /// Forgets earlier attempts: something was gained since.
  void made_progress() { attempts_ = 0; }

  /// Runs coroutines on the loop until all have ended; throws the first exception. A stop makes
  /// their operations fail.
  void run(std::vector<asio::awaitable<void>> tasks, const std::stop_token& give_up = {});

  Connection& connection() { return *connection_; }
  asio::io_context& loop() { return loop_; }
  const Export& negotiated() const { return *export_; }
  const ConnectOptions& options() const { return options_; }
  /// Connections that were made after a loss.
  unsigned reconnects() const { return reconnects_; }

 private:
  void pause();

  ConnectOptions options_;
  RetryPolicy policy_;
  std::stop_token stop_;
  asio::io_context loop_{1};
  std::shared_ptr<Connection> connection_;
  std::optional<Export> export_;
  unsigned attempts_ = 0;
  unsigned reconnects_ = 0;
};

}  // namespace nbdelta::client::nbd
