#pragma once

#include <CLI/CLI.hpp>

#include <memory>

namespace nbdelta::client {

/// `nbdelta pull`: adds the subcommand; the returned function runs it and gives the exit status.
std::function<int()> add_pull_command(CLI::App& app);

}  // namespace nbdelta::client
