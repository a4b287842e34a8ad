#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "client/backup/guardian.hpp"
#include "tests/client/backup/conversation.hpp"

namespace nbdelta::client::backup {

/// What a scripted agent does with one command.
struct Behaviour {
  Clock::Duration busy{};                    // before it does anything
  Clock::Duration afterwards{};              // between doing it and answering
  bool silent = false;                       // does it and does not answer
  bool ignored = false;                      // neither
  bool lost = false;                         // does it; the connection ends instead of an answer
  std::optional<std::string> error{};        // does it, and answers so
  std::optional<qapi::json::value> value{};  // another answer than usual
};

/// A guest agent with a guest that can be frozen. One command at a time, one client at a time, as
/// the real one.
class ScriptedAgent {
 public:
  struct Seen {
    std::string name;
    Clock::Time time;
  };
  /// `count` is how often the command came before.
  using Script = std::function<Behaviour(const std::string& name, int count)>;
  using Spawn = std::function<void(std::function<asio::awaitable<void>()>)>;
  using Connection =
      std::function<std::pair<std::unique_ptr<qmp::Channel>, std::unique_ptr<qmp::Channel>>(
          const std::string&)>;

  ScriptedAgent(Clock& clock, Connection connection, Spawn spawn)
      : clock_(&clock), connection_(std::move(connection)), spawn_(std::move(spawn)) {}

  Script script = [](const std::string&, int) { return Behaviour{}; };
  bool frozen = false;
  std::function<int()> reachable = [] { return 0; };  // or why not: an errno value
  std::vector<Seen> seen;
  std::optional<Clock::Time> frozen_at;
  std::optional<Clock::Time> thawed_at;  // the first thaw after the freeze
  int connections = 0;

  Guardian::Connect connect() {
    return [this]() -> asio::awaitable<std::unique_ptr<qmp::Channel>> { return open(); };
  }

  int count(const std::string& name) const {
    int count = 0;
    for (const Seen& each : seen)
      count += each.name == name ? 1 : 0;
    return count;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const Seen& each : seen)
      names.push_back(each.name);
    return names;
  }

 private:
  asio::awaitable<std::unique_ptr<qmp::Channel>> open() {
    if (const int error = reachable())
      fail(error, "the guest agent at here: {}", std::generic_category().message(error));
    ++connections;
    auto [ours, theirs] = connection_("the guest agent at here");
    const auto peer = std::make_shared<Peer>(std::move(theirs));
    spawn_([this, peer]() { return serve(peer); });
    co_return std::move(ours);
  }

  asio::awaitable<void> serve(std::shared_ptr<Peer> peer) {
    while (true) {
      const qapi::Command command = co_await peer->command();
      const Behaviour behaviour = script(command.name, count(command.name));
      seen.push_back({command.name, clock_->now()});
      if (behaviour.ignored)
        continue;
      if (behaviour.busy != Clock::Duration())
        co_await clock_->wait(behaviour.busy);
      qapi::json::value value = carry_out(command);
      if (behaviour.afterwards != Clock::Duration())
        co_await clock_->wait(behaviour.afterwards);
      if (behaviour.lost)
        co_return;
      if (behaviour.silent)
        continue;
      if (behaviour.value)
        value = *behaviour.value;
      std::string line = qapi::to_line(qapi::Return{.value = value, .id = std::nullopt}) + "\n";
      if (behaviour.error)
        line = qapi::to_line(qapi::ErrorReply{.error_class = "GenericError",
                                              .description = *behaviour.error,
                                              .id = std::nullopt}) +
               "\n";
      if (command.name == "guest-sync-delimited")
        line.insert(line.begin(), qapi::kDelimiter);
      co_await peer->send(line);
    }
  }

  qapi::json::value carry_out(const qapi::Command& command) {
    if (command.name == "guest-sync-delimited")
      return command.arguments.at("id");
    if (command.name == "guest-info")
      return {
          {"version", "7.2.0"},
          {"supported_commands",
           {{{"name", "guest-fsfreeze-freeze"}, {"enabled", true}, {"success-response", true}}}}};
    if (command.name == "guest-fsfreeze-status")
      return frozen ? "frozen" : "thawed";
    if (command.name == "guest-fsfreeze-freeze" || command.name == "guest-fsfreeze-freeze-list") {
      frozen = true;
      frozen_at = clock_->now();
      thawed_at.reset();
      return 2;
    }
    if (command.name == "guest-fsfreeze-thaw") {
      const bool was_frozen = std::exchange(frozen, false);
      if (was_frozen)
        thawed_at = clock_->now();
      return was_frozen ? 2 : 0;
    }
    if (command.name == "guest-exec")
      return {{"pid", 77}};
    if (command.name == "guest-exec-status")
      return {{"exited", true}, {"exitcode", 0}};
    ADD_FAILURE() << "the agent was asked for " << command.name;
    return nullptr;
  }

  Clock* clock_;
  Connection connection_;
  Spawn spawn_;
};

}  // namespace nbdelta::client::backup
