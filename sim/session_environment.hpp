#pragma once

#include <memory>

#include "client/backup/environment.hpp"
#include "sim/world.hpp"

namespace nbdelta::sim {

/// What a session of nbdelta has of the world, when it runs in `process`.
std::unique_ptr<client::backup::Environment> session_environment(World& world, Process& process);

/// Copies what an export of a plugin shows into a new image, as external software does. Throws
/// Error where the plugin is gone.
void copy_export(World& world, const std::string& uri, const std::string& target,
                 const std::string& base);

}  // namespace nbdelta::sim
