#pragma once

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

/// The session's end of a process that ends the job when the session has died.
class CommitGuard {
 public:
  CommitGuard(Environment& environment)
      : client_(environment.start_commit_guard(), environment.clock()) {}

  /// On return it watches. Throws Error.
  asio::awaitable<void> watch(CommitWatch watch) {
    co_await client_.call(std::move(watch), kStart);
  }
  /// The job has ended. Without this, it is ended when this object has gone.
  asio::awaitable<void> release();

 private:
  static constexpr std::chrono::seconds kStart{10};
  qmp::Client client_;
};

/// What that process does, until it is released, or has ended the job, or QEMU is gone. `session`
/// is the channel to the session.
asio::awaitable<void> guard_commit(Environment& environment, std::unique_ptr<qmp::Channel> session);

}  // namespace nbdelta::client::backup
