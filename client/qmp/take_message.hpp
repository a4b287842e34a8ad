#pragma once

#include <optional>
#include <string>

#include "qapi/framing.hpp"
#include "qapi/message.hpp"

namespace nbdelta::client::qmp {

/// The next message of what was fed; nothing where more bytes are needed. Throws Error (EPROTO,
/// EMSGSIZE) that begins with `from`, the name of the channel.
inline std::optional<qapi::ServerMessage> take_message(qapi::Framer& framer,
                                                       const std::string& from) {
  try {
    if (const auto line = framer.next())
      return qapi::parse_server_message(*line);
    return std::nullopt;
  } catch (const Error& error) {
    fail(error.error_number(), "{}: {}", from, error.what());
  }
}

}  // namespace nbdelta::client::qmp
