#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/file.hpp"
#include "client/clock.hpp"
#include "client/qmp/channel.hpp"

namespace nbdelta::client::qmp {

/// Connects to `host:port` or to a Unix socket (anything with a slash, or without a colon). `what`
/// is "QMP" or "the guest agent". Throws Error that says what and where; TimedOut.
asio::awaitable<std::unique_ptr<Channel>> connect(std::string address, std::string what,
                                                  Clock& clock, Clock::Time deadline);

/// Takes over a connected stream socket.
std::unique_ptr<Channel> adopt_socket(const asio::any_io_executor& executor, FileDescriptor fd,
                                      std::string name);

}  // namespace nbdelta::client::qmp
