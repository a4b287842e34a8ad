#pragma once

#include <memory>

#include "client/backup/environment.hpp"
#include "sim/host.hpp"

namespace nbdelta::sim {

/// What a session of nbdelta has of its host, when it runs in `process`.
std::unique_ptr<client::backup::Environment> session_environment(Host& host, Process& process);

/// Copies what an export of a plugin shows into a new image, as external software does. Throws
/// Error where the plugin is gone.
void copy_export(Host& host, const std::string& uri, const std::string& target,
                 const std::string& base);

}  // namespace nbdelta::sim
