#pragma once

#include <memory>
#include <stop_token>
#include <string>

#include "client/backup/environment.hpp"
#include "client/pull/pull.hpp"

namespace nbdelta::client::backup {

struct RealOptions {
  std::string plugin;  // a path, or "delta" where it is installed
  pull::Settings pull;
};

/// This machine: its clock, files and processes. `loop` runs the session; `stop` is its user's.
std::unique_ptr<Environment> real_environment(asio::io_context& loop, RealOptions options,
                                              std::stop_token stop);

/// Our plugin beside this program in a build folder, otherwise "delta".
std::string default_plugin();

}  // namespace nbdelta::client::backup
