#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "client/backup/environment.hpp"
#include "client/qmp/client.hpp"
#include "qapi/command.hpp"

namespace nbdelta::client::backup {

/// An active commit whose last step holds the guest's writes back until it is told to go on, see
/// commit_active().
struct CommitWatch {
  static constexpr std::string_view kName = "watch-commit";
  using Result = qapi::Nothing;
  std::string qmp;  // the address
  std::string job;
  std::string overlay_local;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("qmp", qmp);
    visit("job", job);
    visit("overlay-local", overlay_local);
  }
};

/// The session's end of a process that ends the job when the session has died, and kills a session
/// that has stopped (SIGSTOP, a debugger) or hangs: QEMU, which serves one client at a time, would
/// hold the guest's writes back for as long.
class CommitGuard {
 public:
  CommitGuard(Environment& environment)
      : client_(environment.start_commit_guard(), environment.clock()) {}

  /// On return it watches: this process is killed where it gives no sign of life for kPatience.
  /// Throws Error.
  asio::awaitable<void> watch(CommitWatch watch) {
    co_await client_.call(std::move(watch), kStart);
  }
  /// Runs `operation`, and gives signs of life meanwhile. Throws what it throws. They say that this
  /// process runs, however long QEMU needs for an answer; the operation's own deadlines end it.
  /// Where the operation loses QEMU's connection, the guard ends the job first, if it can within
  /// kStart: whoever connects again has the only connection, and may be stopped with it.
  asio::awaitable<void> during(asio::awaitable<void> operation);
  /// The guest's writes do not wait any more. Without this, the job is ended when this object has
  /// gone.
  asio::awaitable<void> release();

  static constexpr std::chrono::seconds kPatience{10};

 private:
  asio::awaitable<void> give_signs();

  static constexpr std::chrono::seconds kStart{10};
  qmp::Client client_;
};

/// What that process does, until it is released, or has ended the job, or QEMU is gone. `session`
/// is the channel to the session; `kill_session` kills its process, whatever that is doing.
asio::awaitable<void> guard_commit(Environment& environment, std::unique_ptr<qmp::Channel> session,
                                   std::function<void()> kill_session);

}  // namespace nbdelta::client::backup
