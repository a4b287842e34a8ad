#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "client/clock.hpp"
#include "client/qmp/channel.hpp"
#include "qapi/command.hpp"
#include "qapi/framing.hpp"

namespace nbdelta::client::qmp {

/// Sends commands to QEMU, one at a time, and keeps the events that arrive meanwhile. The guardian
/// is spoken to in the same way. For one coroutine at a time.
///
/// Invariants
/// 1. Every command has an id of its own: an answer that comes after its deadline is dropped.
/// 2. At most kMostEvents wait to be taken; then the oldest is forgotten. Nothing may depend on
///    having seen an event.
class Client {
 public:
  static constexpr std::size_t kMostEvents = 1024;
  static constexpr std::chrono::seconds kTimeout{30};
  static constexpr std::chrono::seconds kGreeting{10};

  Client(std::unique_ptr<Channel> channel, Clock& clock)
      : channel_(std::move(channel)), clock_(&clock) {}

  /// Takes QEMU's greeting and ends the negotiation ("Capabilities Negotiation"). Throws Error
  /// where the other end is no QMP server.
  asio::awaitable<qapi::Greeting> open(Clock::Duration timeout = kGreeting);

  /// Throws qapi::CommandError; TimedOut; ChannelLost; Error (EPROTO) for an answer that makes no
  /// sense.
  template <qapi::TypedCommand T>
  asio::awaitable<typename T::Result> call(T command, Clock::Duration timeout = kTimeout) {
    co_return qapi::result_from<T>(co_await execute(qapi::to_command(command), timeout));
  }

  /// The oldest event that was not taken yet; waits for one. Can be cancelled.
  asio::awaitable<qapi::Event> next_event();

  /// Is told of every event when it is received, whoever takes it.
  void watch(std::function<void(const qapi::Event&)> watcher) { watcher_ = std::move(watcher); }

  const std::string& name() const { return channel_->name(); }
  /// QEMU's version, after open().
  std::uint64_t major() const { return major_; }
  Clock& clock() { return *clock_; }

 private:
  asio::awaitable<qapi::json::value> execute(qapi::Command command, Clock::Duration timeout);
  asio::awaitable<qapi::json::value> exchange(qapi::Command command);
  asio::awaitable<qapi::ServerMessage> receive();
  void keep(qapi::Event event);

  std::unique_ptr<Channel> channel_;
  Clock* clock_;
  qapi::Framer framer_;
  std::deque<qapi::Event> events_;
  std::function<void(const qapi::Event&)> watcher_ = [](const qapi::Event&) {};
  std::int64_t last_id_ = 0;
  std::uint64_t major_ = 0;
};

}  // namespace nbdelta::client::qmp
