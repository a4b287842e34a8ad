#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "client/backup/environment.hpp"

namespace nbdelta::client::backup {

/// Starts nbdkit with our plugin: `plugin` is a path, or "delta" where it is installed. See
/// Environment::serve().
asio::awaitable<std::unique_ptr<Server>> start_plugin(std::string plugin, ServeRequest request,
                                                      Clock& clock);

/// See Environment::end_servers().
unsigned end_plugins(const std::set<std::string>& images,
                     const std::function<bool(const SessionId&)>& is_ours);

/// See Environment::remove_temporary().
void remove_plugins_folders(const std::function<bool(const SessionId&)>& is_ours);

}  // namespace nbdelta::client::backup
