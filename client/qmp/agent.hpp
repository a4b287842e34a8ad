#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "client/clock.hpp"
#include "client/qmp/channel.hpp"
#include "qapi/command.hpp"
#include "qapi/framing.hpp"

namespace nbdelta::client::qmp {

/// Sends commands to the guest agent, one at a time. Its answers have no ids, and the channel may
/// hold what somebody else was answered; so both ends must be brought together first, and again
/// after an answer that did not come. For one coroutine at a time.
class Agent {
 public:
  Agent(std::unique_ptr<Channel> channel, Clock& clock)
      : channel_(std::move(channel)), clock_(&clock) {}

  /// guest-sync-delimited; `then` is sent with it, in one piece, and its answer is taken next by
  /// answer(): what must reach an agent that may not answer.
  asio::awaitable<void> synchronise(std::int64_t id, Clock::Time deadline,
                                    std::optional<qapi::Command> then = std::nullopt);
  asio::awaitable<qapi::json::value> answer(std::string command, Clock::Time deadline);

  /// Throws qapi::CommandError; TimedOut; ChannelLost; Error (EPROTO).
  template <qapi::TypedCommand T>
  asio::awaitable<typename T::Result> call(T command, Clock::Time deadline) {
    co_await send(qapi::to_command(command), deadline);
    co_return qapi::result_from<T>(co_await answer(std::string(T::kName), deadline));
  }

  const std::string& name() const { return channel_->name(); }

 private:
  asio::awaitable<void> send(qapi::Command command, Clock::Time deadline);
  asio::awaitable<qapi::ServerMessage> receive();
  asio::awaitable<void> exchange_id(std::string line, std::int64_t id);

  std::unique_ptr<Channel> channel_;
  Clock* clock_;
  qapi::Framer framer_{kLongestAnswer};
  static constexpr std::size_t kLongestAnswer = std::size_t{1} << 20;  // a guest chooses it
};

}  // namespace nbdelta::client::qmp
