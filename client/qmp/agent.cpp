#include "client/qmp/agent.hpp"

#include <fmt/format.h>

#include <utility>
#include <variant>

#include "client/qmp/take_message.hpp"
#include "qapi/agent_commands.hpp"

namespace nbdelta::client::qmp {

asio::awaitable<void> Agent::synchronise(std::int64_t id, Clock::Time deadline,
                                         std::optional<qapi::Command> then) {
  std::string line(1, qapi::kDelimiter);  // ends a command that somebody left half sent
  line += qapi::to_line(qapi::to_command(qapi::agent::GuestSyncDelimited{.id = id})) + "\n";
  if (then)
    line += qapi::to_line(*then) + "\n";
  framer_.skip_to_delimiter();
  return before(*clock_, deadline, exchange_id(std::move(line), id),
                fmt::format("{}: does not answer guest-sync-delimited; is the agent running in the "
                            "guest, and nobody else connected?",
                            name()));
}

asio::awaitable<void> Agent::exchange_id(std::string line, std::int64_t id) {
  co_await channel_->send(std::move(line));
  while (true) {
    std::optional<qapi::ServerMessage> message;
    try {
      message = co_await receive();
    } catch (const Error& error) {
      if (error.error_number() != EPROTO && error.error_number() != EMSGSIZE)
        throw;  // otherwise: rubbish before our answer
    }
    const auto* reply = message ? std::get_if<qapi::Return>(&*message) : nullptr;
    if (reply != nullptr && reply->value == id)
      co_return;
    framer_.skip_to_delimiter();
  }
}

asio::awaitable<void> Agent::send(qapi::Command command, Clock::Time deadline) {
  return before(*clock_, deadline, channel_->send(qapi::to_line(command) + "\n"),
                fmt::format("{}: does not take {}", name(), command.name));
}

asio::awaitable<qapi::json::value> Agent::answer(std::string command, Clock::Time deadline) {
  qapi::ServerMessage message =
      co_await before(*clock_, deadline, receive(),
                      fmt::format("{}: {} was not answered in time", name(), command));
  if (const auto* error = std::get_if<qapi::ErrorReply>(&message))
    throw qapi::CommandError(command, *error);
  auto* reply = std::get_if<qapi::Return>(&message);
  if (reply == nullptr)
    fail(EPROTO, "{}: answers {} with something else", name(), command);
  co_return std::move(reply->value);
}

asio::awaitable<qapi::ServerMessage> Agent::receive() {
  while (true) {
    if (auto message = take_message(framer_, name()))
      co_return std::move(*message);
    framer_.feed(co_await channel_->receive());
  }
}

}  // namespace nbdelta::client::qmp
