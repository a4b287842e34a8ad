#pragma once

#include <CLI/CLI.hpp>

#include <functional>

namespace nbdelta::client {

/// `nbdelta backup`: adds the subcommand; the returned function runs it and gives the exit status.
std::function<int()> add_backup_command(CLI::App& app);

}  // namespace nbdelta::client
