#pragma once

#include <CLI/CLI.hpp>

#include <functional>

namespace nbdelta::client {

/// `nbdelta begin` and `nbdelta end`: the session for external software.
std::function<int()> add_begin_command(CLI::App& app);
std::function<int()> add_end_command(CLI::App& app);

}  // namespace nbdelta::client
