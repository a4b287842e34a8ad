#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "base/error.hpp"

/// The messages of QMP and of the guest agent (QEMU docs/interop/qmp-spec.rst), for both ends of
/// the channel.
namespace nbdelta::qapi {

namespace json = boost::json;

/// "Server Greeting". The agent sends none.
struct Greeting {
  std::uint64_t major = 0;
  std::uint64_t minor = 0;
  std::uint64_t micro = 0;
  std::string package;
};

/// "Issuing Commands".
struct Command {
  std::string name;
  json::object arguments;
  std::optional<json::value> id;
};

/// "Success".
struct Return {
  json::value value;
  std::optional<json::value> id;
};

/// "Error". QEMU has the classes GenericError, CommandNotFound, DeviceNotActive, DeviceNotFound and
/// KVMMissingCap; what happened is in the description alone.
struct ErrorReply {
  std::string error_class;
  std::string description;
  std::optional<json::value> id;
};

/// "Asynchronous events".
struct Event {
  std::string name;
  json::object data;
  std::int64_t seconds = 0;  // of the server's clock
  std::int64_t microseconds = 0;
};

using ServerMessage = std::variant<Greeting, Return, ErrorReply, Event>;

/// From one line. Members that are not known are ignored. Throws Error (EPROTO) that quotes the
/// beginning of what is no such message.
ServerMessage parse_server_message(std::string_view line);

/// As a server takes it. Throws CommandError (class GenericError) in QEMU's words.
Command command_of(json::value message);
Command parse_command(std::string_view line);

/// One line without its end.
std::string to_line(const Greeting& greeting);
std::string to_line(const Command& command);
std::string to_line(Return reply);
std::string to_line(const ErrorReply& error);
std::string to_line(Event event);

/// A command that was answered with an error.
class CommandError : public Error {
 public:
  CommandError(std::string_view command, const ErrorReply& reply);

  const std::string& error_class() const { return class_; }
  /// What the server said.
  const std::string& description() const { return description_; }
  bool command_not_found() const { return class_ == "CommandNotFound"; }

 private:
  std::string class_;
  std::string description_;
};

}  // namespace nbdelta::qapi
