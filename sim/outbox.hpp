#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "client/qmp/channel.hpp"
#include "sim/unawaited.hpp"

namespace nbdelta::sim {

namespace asio = boost::asio;

/// Sends lines in the order they are given, without waiting for that; what the other end does not
/// take any more is dropped.
class Outbox : public std::enable_shared_from_this<Outbox> {
 public:
  Outbox(asio::any_io_executor executor, std::unique_ptr<client::qmp::Channel> channel)
      : executor_(std::move(executor)), channel_(std::move(channel)) {}

  client::qmp::Channel& channel() { return *channel_; }

  void send(std::string line) {
    escape_zeros(line);
    lines_.push_back(std::move(line));
    if (!std::exchange(sending_, true))
      asio::co_spawn(executor_, work(shared_from_this()), kUnawaited);
  }

 private:
  /// As QEMU: what it keeps of a \u0000 (QmpInput) is no UTF-8.
  static void escape_zeros(std::string& line) {
    constexpr std::string_view kKept = "\xC0\x80";
    for (std::size_t at = 0; (at = line.find(kKept, at)) != std::string::npos;)
      line.replace(at, kKept.size(), "\\u0000");
  }

  static asio::awaitable<void> work(std::shared_ptr<Outbox> self) {
    try {
      while (!self->lines_.empty()) {
        std::string line = std::move(self->lines_.front());
        self->lines_.pop_front();
        co_await self->channel_->send(std::move(line));
      }
    } catch (const client::qmp::ChannelLost&) {
      self->lines_.clear();
    }
    self->sending_ = false;
  }

  asio::any_io_executor executor_;
  std::unique_ptr<client::qmp::Channel> channel_;
  std::deque<std::string> lines_;
  bool sending_ = false;
};

}  // namespace nbdelta::sim
