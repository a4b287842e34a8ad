#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "sim/pipe.hpp"

namespace nbdelta::testing {

/// A client of a fake server in virtual time: what it sends and receives, line by line. It leaves
/// when it is destroyed.
class FakeClient {
 public:
  using Serve = std::function<sim::asio::awaitable<void>(std::unique_ptr<client::qmp::Channel>)>;

  FakeClient(sim::VirtualTime& time, sim::Process& server, const Serve& serve)
      : time_(&time), server_(&server) {
    auto [mine, theirs] = sim::make_pipe(process_, server, "the fake");
    channel_ = std::move(mine);
    server.spawn(serve(std::move(theirs)));
    process_.spawn(take(*channel_, received_));
  }
  FakeClient(const FakeClient&) = delete;
  FakeClient& operator=(const FakeClient&) = delete;

  void send(std::string bytes) { process_.spawn(channel_->send(std::move(bytes))); }

  /// The next line, without its end, if it comes within that time.
  std::optional<std::string> receive(sim::Clock::Duration patience) {
    wait(patience, [this] { return received_.find('\n') != std::string::npos; });
    const std::size_t end = received_.find('\n');
    if (end == std::string::npos)
      return std::nullopt;
    std::string line = received_.substr(0, end);
    received_.erase(0, end + 1);
    return line;
  }

  /// Until then, or until that much time has passed.
  void wait(sim::Clock::Duration duration, const std::function<bool()>& then) {
    const sim::Clock::Time end = time_->now() + duration;
    process_.spawn(process_.clock().wait_until(end));  // so that time stops there
    while (!then()) {
      if (process_.run() || server_->run())
        continue;
      if (time_->now() >= end)
        return;
      time_->advance();
    }
  }

 private:
  static sim::asio::awaitable<void> take(client::qmp::Channel& channel, std::string& into) {
    try {
      while (true)
        into += co_await channel.receive();
    } catch (const client::qmp::ChannelLost&) {
    }
  }

  sim::VirtualTime* time_;
  sim::Process* server_;
  std::string received_;
  std::unique_ptr<client::qmp::Channel> channel_;
  sim::Process process_{*time_, "client"};  // destroyed before what its coroutines use
};

}  // namespace nbdelta::testing
