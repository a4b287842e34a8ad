#pragma once

#include <memory>
#include <string>

#include "base/error.hpp"
#include "client/asio.hpp"

namespace nbdelta::client::qmp {

/// The other end has closed the channel, or is gone.
class ChannelLost : public Error {
 public:
  using Error::Error;
};

/// A byte stream to QEMU, to the guest agent or to the guardian. Both operations can be cancelled
/// and do not lose what was received.
class Channel {
 public:
  virtual ~Channel() = default;
  /// What messages call the other end: "QMP at /run/vm.qmp".
  virtual const std::string& name() const = 0;
  /// Throws ChannelLost.
  virtual asio::awaitable<void> send(std::string bytes) = 0;
  /// At least one byte. Throws ChannelLost.
  virtual asio::awaitable<std::string> receive() = 0;
};

}  // namespace nbdelta::client::qmp
