#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/backup/guardian.hpp"
#include "client/qmp/client.hpp"
#include "tests/client/backup/scripted_agent.hpp"

namespace nbdelta::client::backup {

using namespace std::chrono_literals;

/// A guardian between a scripted agent and a session.
class GuardianTest : public Conversation {
 protected:
  using Names = std::vector<std::string>;
  static constexpr const char* kSync = "guest-sync-delimited";
  static constexpr const char* kInfo = "guest-info";
  static constexpr const char* kStatus = "guest-fsfreeze-status";
  static constexpr const char* kFreeze = "guest-fsfreeze-freeze";
  static constexpr const char* kThaw = "guest-fsfreeze-thaw";

  GuardianTest()
      : agent_(
            clock_, [this](const std::string& name) { return connection(name); },
            [this](std::function<asio::awaitable<void>()> talk) {
              spawn_server(std::move(talk));
            }) {}

  /// Runs a guardian beside `session`, whose end of the channel closes when it returns.
  void run_with(std::function<asio::awaitable<void>()> session) {
    Ends ends = connection("the guardian");
    session_ = std::make_unique<qmp::Client>(std::move(ends.first), clock_);
    auto guardians_end = std::make_shared<std::unique_ptr<qmp::Channel>>(std::move(ends.second));
    spawn([this, guardians_end]() -> asio::awaitable<void> {
      Guardian guardian(agent_.connect(), std::move(*guardians_end), clock_, 1000,
                        [this] { session_was_gone_ = true; });
      try {
        co_await guardian.run();
      } catch (const Error& error) {
        guardian_error_ = error.what();
      }
      ended_at_ = clock_.now();
    });
    spawn([this, session]() -> asio::awaitable<void> {
      co_await session();
      session_.reset();
      session_ended_at_ = clock_.now();
    });
    run();
  }

  asio::awaitable<guardian::Prepared> prepare(bool presync = false) {
    return session_->call(guardian::Prepare{.presync = presync}, 60s);
  }
  asio::awaitable<guardian::Frozen> freeze(Clock::Duration deadline = 10s) {
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(deadline);
    return session_->call(guardian::Freeze{.mountpoints = std::nullopt, .deadline_ms = ms.count()},
                          60s);
  }
  asio::awaitable<guardian::Thawed> thaw() { return session_->call(guardian::Thaw{}, 60s); }
  asio::awaitable<qapi::Nothing> confirm() { return session_->call(guardian::Confirm{}, 60s); }

  /// The message that a call ends with.
  template <class T>
  static asio::awaitable<std::string> refusal(asio::awaitable<T> call) {
    try {
      co_await std::move(call);
    } catch (const qapi::CommandError& error) {
      co_return error.description();
    }
    co_return "no error";
  }

  std::int64_t microseconds(Clock::Time time) const {
    return std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
  }
  Clock::Duration frozen_for() const {
    return agent_.frozen_at && agent_.thawed_at ? *agent_.thawed_at - *agent_.frozen_at
                                                : Clock::Duration::max();
  }

  ScriptedAgent agent_;
  std::unique_ptr<qmp::Client> session_;
  std::string guardian_error_;
  bool session_was_gone_ = false;
  Clock::Time ended_at_{};
  Clock::Time session_ended_at_{};
};

}  // namespace nbdelta::client::backup
