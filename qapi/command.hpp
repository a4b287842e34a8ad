#pragma once

#include <concepts>
#include <string>
#include <string_view>

#include "qapi/fields.hpp"
#include "qapi/message.hpp"

namespace nbdelta::qapi {

/// The result of a command that returns an empty object.
struct Nothing {
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
  bool operator==(const Nothing&) const = default;
};

/// A command is a structure of its arguments, with its name on the wire and the type of what it
/// returns:
///
///     struct JobComplete {
///       static constexpr std::string_view kName = "job-complete";
///       using Result = Nothing;
///       std::string id;
///       template <class Visitor> void fields(Visitor& visit) { visit("id", id); }
///     };
template <class T>
concept TypedCommand = Structure<T> && requires {
  { T::kName } -> std::convertible_to<std::string_view>;
  typename T::Result;
};

/// For the end that sends it.
template <TypedCommand T>
Command to_command(const T& command) {
  return {.name = std::string(T::kName),
          .arguments = to_json(command).get_object(),
          .id = std::nullopt};
}

template <TypedCommand T>
typename T::Result result_from(const json::value& value) {
  typename T::Result result{};
  from_json(value, result, T::kName);
  return result;
}

/// For the end that carries it out. Throws Error (EPROTO).
template <TypedCommand T>
T arguments_of(const Command& command) {
  T typed{};
  from_json(json::value(command.arguments), typed, T::kName);
  return typed;
}

/// What an event carries, likewise; kName is the event's.
template <class T>
T event_data(const Event& event) {
  T typed{};
  from_json(json::value(event.data), typed, T::kName);
  return typed;
}

}  // namespace nbdelta::qapi
