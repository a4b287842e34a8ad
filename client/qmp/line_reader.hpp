#pragma once

#include <optional>
#include <string>

#include "client/qmp/channel.hpp"
#include "qapi/framing.hpp"

namespace nbdelta::client::qmp {

/// The lines that come over a channel which somebody else owns.
class LineReader {
 public:
  explicit LineReader(Channel& channel) : channel_(&channel) {}

  /// Nothing where the channel is closed. Throws Error where a line is too long. Can be cancelled,
  /// and does not lose what was received.
  asio::awaitable<std::optional<std::string>> next() {
    while (true) {
      if (auto line = framer_.next())
        co_return line;
      try {
        framer_.feed(co_await channel_->receive());
      } catch (const ChannelLost&) {
        co_return std::nullopt;
      }
    }
  }

 private:
  Channel* channel_;
  qapi::Framer framer_;
};

}  // namespace nbdelta::client::qmp
