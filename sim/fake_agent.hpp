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
#include "qapi/message.hpp"
#include "sim/commands.hpp"
#include "sim/outbox.hpp"
#include "sim/qmp_input.hpp"

namespace nbdelta::sim {

namespace asio = boost::asio;
using client::Clock;

/// How a freeze goes.
struct FreezeBehaviour {
  Clock::Duration time = std::chrono::milliseconds(20);  // besides quiesce()
  bool freezes = true;  // whether file systems are frozen in the end
  bool answers = true;  // whether anybody is told
  std::string error;    // what is answered instead
};

/// Stands in for the guest agent behind its serial port (QEMU qga/qapi-schema.json): it carries out
/// one command after the other, and answers whoever is connected then. What one client has sent of
/// a command stays when it leaves, and spoils what the next one sends first. For one thread.
class FakeAgent {
 public:
  FakeAgent(asio::any_io_executor executor, Clock& clock);

  /// A connection to the port, until the other end closes it. While one is open, another waits.
  asio::awaitable<void> serve(std::unique_ptr<client::qmp::Channel> channel);

  bool frozen() const { return frozen_ != 0; }
  /// With a command, which keeps the next ones waiting.
  bool busy() const { return working_; }
  std::int64_t file_systems = 2;
  Clock::Duration command_time = std::chrono::microseconds(200);
  Clock::Duration thaw_time = std::chrono::milliseconds(5);
  /// How the next freeze goes.
  std::function<FreezeBehaviour()> freeze = [] { return FreezeBehaviour(); };
  /// Before file systems are frozen, in the time that it takes: what the guest's kernel does for
  /// it.
  std::function<asio::awaitable<void>()> quiesce = []() -> asio::awaitable<void> { co_return; };
  /// It takes commands, and does nothing with them.
  bool silent = false;
  std::function<void(bool frozen)> changed = [](bool) {};
  /// Before a command is carried out: its refusal, where there is one.
  std::function<std::optional<std::string>()> refusal = [] { return std::nullopt; };
  /// A command has come; later, what it was answered: an error's text, or "". Never, where nobody
  /// is told.
  std::function<void(const qapi::Command&)> arrived = [](const qapi::Command&) {};
  std::function<void(const std::string& error)> answered = [](const std::string&) {};
  /// A command has been carried out; `begun`: when it was taken up.
  std::function<void(const std::string& name, Clock::Time begun)> carried_out =
      [](const std::string&, Clock::Time) {};

 private:
  asio::awaitable<void> work();
  void tell_of(const QmpValue& message) const;
  asio::awaitable<void> answer(QmpValue message, Clock::Time begun);
  /// Sends the answer, if there is one.
  asio::awaitable<void> carry_out(qapi::Command command);
  asio::awaitable<void> freeze_now(const qapi::Command& command);
  qapi::json::value info() const;
  void refuse_when_frozen(const std::string& command) const;
  void reply(const qapi::Command& command, qapi::json::value value);
  void send(const std::string& line);
  void set_frozen(std::int64_t count);

  asio::any_io_executor executor_;
  Clock* clock_;
  std::shared_ptr<Outbox> client_;
  QmpInput input_;
  std::deque<QmpValue> messages_;
  bool working_ = false;
  std::int64_t frozen_ = 0;
};

}  // namespace nbdelta::sim
