#include "sim/transaction.hpp"

#include <algorithm>
#include <string_view>

#include "qapi/snapshot_commands.hpp"

namespace nbdelta::sim {

std::int64_t snapshots_in(const qapi::Command& command) {
  const qapi::json::value* actions = command.arguments.if_contains("actions");
  if (command.name != qapi::Transaction::kName || actions == nullptr || !actions->is_array())
    return 0;
  return std::count_if(
      actions->get_array().begin(), actions->get_array().end(),
      [](const qapi::json::value& action) {
        const qapi::json::object* object = action.if_object();
        const qapi::json::value* type = object == nullptr ? nullptr : object->if_contains("type");
        return type != nullptr && type->is_string() &&
               std::string_view(type->get_string()) == qapi::BlockdevSnapshot::kName;
      });
}

}  // namespace nbdelta::sim
