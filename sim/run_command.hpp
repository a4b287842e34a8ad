#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace nbdelta::sim {

/// `nbdelta-sim run`: a guest as a process. What is returned carries the command out, and returns
/// the exit status.
std::function<int()> add_run_command(CLI::App& app);

/// `nbdelta-sim check`: images against the record of what that guest wrote.
std::function<int()> add_check_command(CLI::App& app);

}  // namespace nbdelta::sim
