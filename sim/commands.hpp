#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "qapi/command.hpp"
#include "sim/arguments.hpp"

namespace nbdelta::sim {

/// The commands that a server knows. A refusal is a BlockError in QEMU's words.
class CommandTable {
 public:
  using Handler = std::function<qapi::json::value(const qapi::json::object&)>;

  template <qapi::TypedCommand T>
  void add(std::function<typename T::Result(const T&)> carry_out) {
    handlers_[std::string(T::kName)] = [carry_out](const qapi::json::object& arguments) {
      return qapi::to_json(carry_out(read<T>(arguments)));
    };
  }

  /// Throws BlockError, of class CommandNotFound where the command is not known.
  qapi::json::value execute(const qapi::Command& command) const {
    const auto found = handlers_.find(command.name);
    if (found == handlers_.end())
      refuse_unknown(command.name);
    return found->second(command.arguments);
  }

  [[noreturn]] static void refuse_unknown(const std::string& name) {
    throw BlockError(fmt::format("The command {} has not been found", name), "CommandNotFound");
  }

  bool knows(const std::string& name) const { return handlers_.count(name) != 0; }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, handler] : handlers_)
      names.push_back(name);
    return names;
  }

  /// The arguments of a command, or of one action of a transaction, which `path` says.
  template <class T>
  static T read(const qapi::json::object& arguments, const std::string& path = {}) {
    T typed{};
    read_argument(qapi::json::value(arguments), typed, path);
    return typed;
  }

 private:
  std::map<std::string, Handler> handlers_;
};

}  // namespace nbdelta::sim
