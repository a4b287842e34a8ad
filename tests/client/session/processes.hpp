#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace nbdelta::testing {

/// "" where there is no such file.
std::string text_of_file(const std::string& path);

/// Children of a process whose name contains `name`, by what /proc says.
std::vector<pid_t> children_of(pid_t parent, const std::string& name);

/// The plugins that serve images of a folder, and hold their locks. Returns when none is left.
void kill_servers_of(const std::string& folder);

}  // namespace nbdelta::testing
