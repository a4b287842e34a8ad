#pragma once

#include <CLI/CLI.hpp>

#include <functional>

namespace nbdelta::client {

/// `nbdelta recover`.
std::function<int()> add_recover_command(CLI::App& app);

}  // namespace nbdelta::client
