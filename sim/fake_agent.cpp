#include "sim/fake_agent.hpp"

#include <utility>

#include "qapi/agent_commands.hpp"
#include "qapi/framing.hpp"

namespace nbdelta::sim {

namespace json = qapi::json;
namespace commands = qapi::agent;
using client::qmp::ChannelLost;

FakeAgent::FakeAgent(asio::any_io_executor executor, Clock& clock)
    : executor_(std::move(executor)), clock_(&clock) {}

asio::awaitable<void> FakeAgent::serve(std::unique_ptr<client::qmp::Channel> channel) {
  while (client_ != nullptr)
    co_await clock_->wait(std::chrono::milliseconds(10));
  const auto client = std::make_shared<Outbox>(executor_, std::move(channel));
  client_ = client;
  qapi::Framer framer;
  try {
    while (true) {
      while (auto line = framer.next()) {
        lines_.push_back(std::move(*line));
        if (!std::exchange(working_, true))
          asio::co_spawn(executor_, work(), asio::detached);
      }
      framer.feed(co_await client->channel().receive());
    }
  } catch (const ChannelLost&) {
  }
  client_.reset();
}

asio::awaitable<void> FakeAgent::work() {
  while (!lines_.empty()) {
    std::string line = std::move(lines_.front());
    lines_.pop_front();
    while (line.starts_with(qapi::kDelimiter))
      line.erase(0, 1);
    co_await clock_->wait(command_time);
    if (silent || line.empty())
      continue;
    try {
      co_await carry_out(qapi::parse_command(line));
    } catch (const qapi::CommandError& error) {
      reply(qapi::to_line(qapi::ErrorReply{.error_class = error.error_class(),
                                           .description = error.description(),
                                           .id = std::nullopt}));
    } catch (const BlockError& error) {
      reply(qapi::to_line(qapi::ErrorReply{
          .error_class = error.error_class(), .description = error.what(), .id = std::nullopt}));
    }
  }
  working_ = false;
}

void FakeAgent::reply(const std::string& line, bool delimited) {
  if (client_ != nullptr)
    client_->send((delimited ? std::string(1, qapi::kDelimiter) : std::string()) + line + "\n");
}

void FakeAgent::set_frozen(std::int64_t count) {
  const bool before = frozen();
  frozen_ = count;
  if (frozen() != before)
    changed(frozen());
}

asio::awaitable<void> FakeAgent::carry_out(qapi::Command command) {
  json::value value = json::object();
  bool delimited = false;
  const auto forbidden_when_frozen = [&] {
    if (frozen())
      throw BlockError(
          fmt::format("Command {} has been disabled: the command is not allowed", command.name),
          "CommandNotFound");
  };
  if (command.name == commands::GuestSyncDelimited::kName) {
    value = CommandTable::read<commands::GuestSyncDelimited>(command.arguments).id;
    delimited = true;
  } else if (command.name == commands::GuestPing::kName) {
    // nothing but an answer
  } else if (command.name == commands::GuestInfo::kName) {
    json::array supported;
    for (const char* name :
         {"guest-sync-delimited", "guest-ping", "guest-info", "guest-fsfreeze-status",
          "guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw",
          "guest-exec", "guest-exec-status"})
      supported.push_back({{"name", name}, {"enabled", true}, {"success-response", true}});
    value = {{"version", "7.2.22"}, {"supported_commands", std::move(supported)}};
  } else if (command.name == commands::GuestFsfreezeStatus::kName) {
    value = frozen() ? "frozen" : "thawed";
  } else if (command.name == commands::GuestFsfreezeFreeze::kName ||
             command.name == commands::GuestFsfreezeFreezeList::kName) {
    forbidden_when_frozen();
    co_await freeze_now();
    co_return;
  } else if (command.name == commands::GuestFsfreezeThaw::kName) {
    co_await clock_->wait(thaw_time);
    value = frozen_;
    set_frozen(0);
  } else if (command.name == commands::GuestExec::kName) {
    forbidden_when_frozen();
    value = {{"pid", 1000}};
  } else if (command.name == commands::GuestExecStatus::kName) {
    value = {{"exited", true}, {"exitcode", 0}};
  } else {
    throw BlockError(fmt::format("The command {} has not been found", command.name),
                     "CommandNotFound");
  }
  reply(qapi::to_line(qapi::Return{.value = std::move(value), .id = std::nullopt}), delimited);
}

asio::awaitable<void> FakeAgent::freeze_now() {
  const FreezeBehaviour behaviour = freeze();
  co_await clock_->wait(behaviour.time / 2);
  co_await quiesce();
  if (behaviour.freezes)
    set_frozen(file_systems);
  co_await clock_->wait(behaviour.time / 2);
  if (!behaviour.answers)
    co_return;
  if (!behaviour.error.empty())
    throw BlockError(behaviour.error);
  reply(qapi::to_line(qapi::Return{.value = frozen_, .id = std::nullopt}));
}

}  // namespace nbdelta::sim
