#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "client/backup/environment.hpp"

namespace nbdelta::client::backup {

/// Starts nbdkit with our plugin: `plugin` is a path, or "delta" where it is installed. See
/// Environment::serve().
asio::awaitable<std::unique_ptr<Server>> start_plugin(std::string plugin, ServeRequest request,
                                                      Clock& clock);

/// Whether a plugin that was started by this name (ServeRequest) serves on this machine.
bool plugin_serves(std::string_view name);

/// See Environment::end_servers().
unsigned end_plugins(const std::set<std::string>& images,
                     const std::function<bool(const SessionId&)>& is_ours);

/// See Environment::remove_temporary().
void remove_plugins_folders(const std::function<bool(const SessionId&)>& is_ours);

}  // namespace nbdelta::client::backup
