#include "sim/fake_agent.hpp"

#include <utility>

#include "qapi/agent_commands.hpp"
#include "qapi/framing.hpp"
#include "sim/unawaited.hpp"

namespace nbdelta::sim {

namespace json = qapi::json;
namespace commands = qapi::agent;
using client::qmp::ChannelLost;

namespace {

constexpr std::int64_t kPid = 1000;  // of all that is started in the guest

}  // namespace

FakeAgent::FakeAgent(asio::any_io_executor executor, Clock& clock)
    : executor_(std::move(executor)), clock_(&clock) {}

asio::awaitable<void> FakeAgent::serve(std::unique_ptr<client::qmp::Channel> channel) {
  while (client_ != nullptr)
    co_await clock_->wait(std::chrono::milliseconds(10));
  const auto client = std::make_shared<Outbox>(executor_, std::move(channel));
  client_ = client;
  try {
    while (true) {
      while (auto message = input_.next()) {
        messages_.push_back(std::move(*message));
        if (!std::exchange(working_, true))
          asio::co_spawn(executor_, work(), kUnawaited);
      }
      input_.feed(co_await client->channel().receive());
    }
  } catch (const ChannelLost&) {
  }
  client_.reset();
}

asio::awaitable<void> FakeAgent::work() {
  while (!messages_.empty()) {
    QmpValue message = std::move(messages_.front());
    messages_.pop_front();
    tell_of(message);
    const Clock::Time begun = clock_->now();
    co_await clock_->wait(command_time);
    if (!silent)
      co_await answer(std::move(message), begun);
  }
  working_ = false;
}

void FakeAgent::tell_of(const QmpValue& message) const {
  if (!message.error.empty())
    return;
  try {
    arrived(qapi::command_of(message.value));
  } catch (const qapi::CommandError&) {  // what is no command is refused later
  }
}

asio::awaitable<void> FakeAgent::answer(QmpValue message, Clock::Time begun) {
  qapi::ErrorReply error{"GenericError", message.error, std::nullopt};
  if (message.error.empty()) {
    if (const json::object* object = message.value.if_object())
      if (const json::value* id = object->if_contains("id"))
        error.id = *id;
    try {
      qapi::Command command = qapi::command_of(std::move(message.value));
      const std::string name = command.name;
      if (const auto refused = refusal())
        throw BlockError(*refused);
      co_await carry_out(std::move(command));
      carried_out(name, begun);
      co_return;
    } catch (const qapi::CommandError& refused) {
      error.description = refused.description();
    } catch (const BlockError& refused) {
      error.error_class = refused.error_class();
      error.description = refused.what();
    }
  }
  answered(error.description);
  send(qapi::to_line(error));
}

void FakeAgent::send(const std::string& line) {
  if (client_ != nullptr)
    client_->send(line + "\n");
}

void FakeAgent::reply(const qapi::Command& command, json::value value) {
  answered("");
  const std::string line = qapi::to_line(qapi::Return{.value = std::move(value), .id = command.id});
  send(command.name == commands::GuestSyncDelimited::kName ? qapi::kDelimiter + line : line);
}

void FakeAgent::set_frozen(std::int64_t count) {
  const bool before = frozen();
  frozen_ = count;
  if (frozen() != before)
    changed(frozen());
}

void FakeAgent::refuse_when_frozen(const std::string& command) const {
  if (frozen())
    throw BlockError(
        fmt::format("Command {} has been disabled: the agent is in frozen state", command),
        "CommandNotFound");
}

json::value FakeAgent::info() const {
  json::array supported;
  const auto add = [&](std::string_view name, bool enabled) {
    supported.push_back({{"name", name}, {"enabled", enabled}, {"success-response", true}});
  };
  for (const char* name : {"guest-sync-delimited", "guest-ping", "guest-info",
                           "guest-fsfreeze-status", "guest-fsfreeze-thaw"})
    add(name, true);
  for (const char* name :
       {"guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-exec", "guest-exec-status"})
    add(name, !frozen());
  return {{"version", "7.2.22"}, {"supported_commands", std::move(supported)}};
}

asio::awaitable<void> FakeAgent::carry_out(qapi::Command command) {
  if (command.name == commands::GuestSyncDelimited::kName) {
    reply(command, CommandTable::read<commands::GuestSyncDelimited>(command.arguments).id);
  } else if (command.name == commands::GuestPing::kName) {
    CommandTable::read<commands::GuestPing>(command.arguments);
    reply(command, json::object());
  } else if (command.name == commands::GuestInfo::kName) {
    CommandTable::read<commands::GuestInfo>(command.arguments);
    reply(command, info());
  } else if (command.name == commands::GuestFsfreezeStatus::kName) {
    CommandTable::read<commands::GuestFsfreezeStatus>(command.arguments);
    reply(command, frozen() ? "frozen" : "thawed");
  } else if (command.name == commands::GuestFsfreezeFreeze::kName ||
             command.name == commands::GuestFsfreezeFreezeList::kName) {
    refuse_when_frozen(command.name);
    if (command.name == commands::GuestFsfreezeFreeze::kName)
      CommandTable::read<commands::GuestFsfreezeFreeze>(command.arguments);
    co_await freeze_now(command);
  } else if (command.name == commands::GuestFsfreezeThaw::kName) {
    CommandTable::read<commands::GuestFsfreezeThaw>(command.arguments);
    co_await clock_->wait(thaw_time);
    const std::int64_t thawed = frozen_;
    set_frozen(0);
    reply(command, thawed);
  } else if (command.name == commands::GuestExec::kName) {
    refuse_when_frozen(command.name);
    CommandTable::read<commands::GuestExec>(command.arguments);
    reply(command, {{"pid", kPid}});
  } else if (command.name == commands::GuestExecStatus::kName) {
    refuse_when_frozen(command.name);
    if (CommandTable::read<commands::GuestExecStatus>(command.arguments).pid != kPid)
      refuse("Invalid parameter 'pid'");
    reply(command, {{"exited", true}, {"exitcode", 0}});
  } else {
    throw BlockError(fmt::format("The command {} has not been found", command.name),
                     "CommandNotFound");
  }
}

/// Of the file systems that are named, or of all.
asio::awaitable<void> FakeAgent::freeze_now(const qapi::Command& command) {
  const auto list = CommandTable::read<commands::GuestFsfreezeFreezeList>(command.arguments);
  const FreezeBehaviour behaviour = freeze();
  co_await clock_->wait(behaviour.time / 2);
  co_await quiesce();
  if (behaviour.freezes)
    set_frozen(list.mountpoints ? static_cast<std::int64_t>(list.mountpoints->size())
                                : file_systems);
  co_await clock_->wait(behaviour.time / 2);
  if (!behaviour.answers)
    co_return;
  if (!behaviour.error.empty())
    throw BlockError(behaviour.error);
  reply(command, frozen_);
}

}  // namespace nbdelta::sim
