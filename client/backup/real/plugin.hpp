#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "client/backup/environment.hpp"

namespace nbdelta::client::backup {

/// Starts nbdkit with our plugin: `plugin` is a path, or "delta" where it is installed. See
/// Environment::serve().
asio::awaitable<std::unique_ptr<Server>> start_plugin(std::string plugin, ServeRequest request,
                                                      Clock& clock);

/// See Environment::end_server().
void end_plugin(std::int64_t process_id);

}  // namespace nbdelta::client::backup
