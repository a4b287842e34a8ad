#pragma once

#include <CLI/CLI.hpp>

#include <functional>

namespace nbdelta::client {

/// `nbdelta check-start`.
std::function<int()> add_check_start_command(CLI::App& app);

}  // namespace nbdelta::client
