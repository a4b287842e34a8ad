#include "qapi/message.hpp"

#include <boost/json/monotonic_resource.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <utility>

#include "base/utf8.hpp"

namespace nbdelta::qapi {
namespace {

constexpr std::size_t kQuoted = 200;

/// The member, or null where there is none.
const json::value* member(const json::object& object, std::string_view name) {
  return object.if_contains(name);
}

std::string text(const json::object& object, std::string_view name) {
  const json::value* value = member(object, name);
  const json::string* string = value == nullptr ? nullptr : value->if_string();
  return string == nullptr ? std::string() : std::string(*string);
}

std::int64_t number(const json::object& object, std::string_view name) {
  const json::value* value = member(object, name);
  return value == nullptr || !value->is_int64() ? 0 : value->get_int64();
}

const json::object* object_at(const json::object& object, std::string_view name) {
  const json::value* value = member(object, name);
  return value == nullptr ? nullptr : value->if_object();
}

/// Out of the message.
std::optional<json::value> take_id(json::object& message) {
  json::value* id = message.if_contains("id");
  return id == nullptr ? std::nullopt : std::optional(std::move(*id));
}

Greeting parse_greeting(const json::object& qmp) {
  Greeting greeting;
  const json::object* version = object_at(qmp, "version");
  if (version == nullptr)
    return greeting;
  greeting.package = text(*version, "package");
  if (const json::object* qemu = object_at(*version, "qemu")) {
    greeting.major = static_cast<std::uint64_t>(number(*qemu, "major"));
    greeting.minor = static_cast<std::uint64_t>(number(*qemu, "minor"));
    greeting.micro = static_cast<std::uint64_t>(number(*qemu, "micro"));
  }
  return greeting;
}

Event take_event(json::object& message) {
  Event event{.name = text(message, "event"), .data = {}};
  json::value* data = message.if_contains("data");
  if (data != nullptr && data->is_object())
    event.data = std::move(data->get_object());
  if (const json::object* time = object_at(message, "timestamp")) {
    event.seconds = number(*time, "seconds");
    event.microseconds = number(*time, "microseconds");
  }
  return event;
}

[[noreturn]] void refuse_command(std::string_view description) {
  throw CommandError({}, ErrorReply{"GenericError", std::string(description), std::nullopt});
}

std::string line_of(json::object message, std::optional<json::value> id) {
  if (id)
    message.emplace("id", std::move(*id));
  return json::serialize(message);
}

}  // namespace

ServerMessage parse_server_message(std::string_view line) {
  json::error_code status;
  // A list of nodes is thousands of values, which are read once and go together.
  json::value parsed =
      json::parse(line, status, json::make_shared_resource<json::monotonic_resource>());
  json::object* message = status ? nullptr : parsed.if_object();
  if (message != nullptr) {
    if (const json::object* qmp = object_at(*message, "QMP"))
      return parse_greeting(*qmp);
    if (json::value* value = message->if_contains("return"))
      return Return{std::move(*value), take_id(*message)};
    if (const json::object* error = object_at(*message, "error"))
      return ErrorReply{text(*error, "class"), text(*error, "desc"), take_id(*message)};
    if (member(*message, "event") != nullptr)
      return take_event(*message);
  }
  fail(EPROTO, "is no message of QMP or the guest agent: {}",
       json::serialize(json::string(as_utf8(line.substr(0, kQuoted)))));
}

Command parse_command(std::string_view line) {
  json::error_code status;
  json::value parsed = json::parse(line, status);
  if (status)
    refuse_command("Invalid JSON syntax");
  return command_of(std::move(parsed));
}

Command command_of(json::value parsed) {
  json::object* message = parsed.if_object();
  if (message == nullptr)
    refuse_command("QMP input must be a JSON object");
  Command command;
  command.id = take_id(*message);
  for (auto& [key, value] : *message) {
    if (key == "execute" && value.is_string())
      command.name = std::string(value.get_string());
    else if (key == "execute")
      refuse_command("QMP input member 'execute' must be a string");
    else if (key == "arguments" && value.is_object())
      command.arguments = std::move(value.get_object());
    else if (key == "arguments")
      refuse_command("QMP input member 'arguments' must be an object");
    else if (key != "id")
      refuse_command(fmt::format("QMP input member '{}' is unexpected", std::string_view(key)));
  }
  if (!message->contains("execute"))
    refuse_command("QMP input lacks member 'execute'");
  return command;
}

std::string to_line(const Greeting& greeting) {
  return json::serialize(json::object{
      {"QMP",
       {{"version",
         {{"qemu",
           {{"micro", greeting.micro}, {"minor", greeting.minor}, {"major", greeting.major}}},
          {"package", greeting.package}}},
        {"capabilities", json::array{"oob"}}}}});
}

std::string to_line(const Command& command) {
  json::object message{{"execute", command.name}};
  if (!command.arguments.empty())
    message["arguments"] = command.arguments;
  return line_of(std::move(message), command.id);
}

std::string to_line(Return reply) {
  json::object message;
  message.emplace("return", std::move(reply.value));
  return line_of(std::move(message), std::move(reply.id));
}

std::string to_line(const ErrorReply& error) {
  return line_of({{"error", {{"class", error.error_class}, {"desc", error.description}}}},
                 error.id);
}

std::string to_line(Event event) {
  json::object message{
      {"timestamp", {{"seconds", event.seconds}, {"microseconds", event.microseconds}}},
      {"event", event.name}};
  if (!event.data.empty())
    message.emplace("data", std::move(event.data));
  return json::serialize(message);
}

CommandError::CommandError(std::string_view command, const ErrorReply& reply)
    : Error(EREMOTEIO, command.empty() ? reply.description
                                       : fmt::format("{}: {}", command, reply.description)),
      class_(reply.error_class),
      description_(reply.description) {}

}  // namespace nbdelta::qapi
