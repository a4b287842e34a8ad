#include "client/qmp/client.hpp"

#include <fmt/format.h>

#include <utility>
#include <variant>

#include "client/qmp/take_message.hpp"

namespace nbdelta::client::qmp {

asio::awaitable<qapi::Greeting> Client::open(Clock::Duration timeout) {
  const Clock::Time deadline = clock_->now() + timeout;
  const qapi::ServerMessage first =
      co_await before(*clock_, deadline, receive(),
                      fmt::format("{}: no greeting came; another client may be connected, or it is "
                                  "no QMP server",
                                  name()));
  const auto* greeting = std::get_if<qapi::Greeting>(&first);
  if (greeting == nullptr)
    fail(EPROTO, "{}: is no QMP server: it does not begin with a greeting", name());
  major_ = greeting->major;
  const qapi::Command enable{.name = "qmp_capabilities", .arguments = {}, .id = std::nullopt};
  co_await execute(enable, deadline - clock_->now());
  co_return *greeting;
}

asio::awaitable<qapi::Event> Client::next_event() {
  while (events_.empty()) {
    qapi::ServerMessage message = co_await receive();
    if (auto* event = std::get_if<qapi::Event>(&message))
      keep(std::move(*event));
  }
  qapi::Event event = std::move(events_.front());
  events_.pop_front();
  co_return event;
}

asio::awaitable<qapi::json::value> Client::execute(qapi::Command command, Clock::Duration timeout) {
  std::string late = fmt::format("{}: {} was not answered in {} s", name(), command.name,
                                 std::chrono::duration<double>(timeout).count());
  return before(*clock_, clock_->now() + timeout, exchange(std::move(command)), std::move(late));
}

asio::awaitable<qapi::json::value> Client::exchange(qapi::Command command) {
  const qapi::json::value id = ++last_id_;
  command.id = id;
  co_await channel_->send(qapi::to_line(command) + "\n");
  while (true) {
    qapi::ServerMessage message = co_await receive();
    if (auto* event = std::get_if<qapi::Event>(&message)) {
      keep(std::move(*event));
    } else if (auto* reply = std::get_if<qapi::Return>(&message)) {
      if (reply->id == id)
        co_return std::move(reply->value);
    } else if (const auto* error = std::get_if<qapi::ErrorReply>(&message)) {
      // Without an id where the command could not even be read.
      if (error->id == id || !error->id)
        throw qapi::CommandError(command.name, *error);
    }
  }
}

asio::awaitable<qapi::ServerMessage> Client::receive() {
  while (true) {
    if (auto message = take_message(framer_, name()))
      co_return std::move(*message);
    const std::string_view begun = framer_.unfinished();
    const std::size_t first = begun.find_first_not_of(" \r");
    if (first != std::string_view::npos && begun[first] != '{')  // its line may never end
      fail(EPROTO, "{}: is no QMP server: what it says is no JSON object", name());
    framer_.feed(co_await channel_->receive());
  }
}

void Client::keep(qapi::Event event) {
  watcher_(event);
  if (events_.size() == kMostEvents)
    events_.pop_front();
  events_.push_back(std::move(event));
}

}  // namespace nbdelta::client::qmp
