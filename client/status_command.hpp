#pragma once

#include <CLI/CLI.hpp>

#include <functional>

namespace nbdelta::client {

/// `nbdelta status`: sessions, overlays, bitmaps, jobs.
std::function<int()> add_status_command(CLI::App& app);

}  // namespace nbdelta::client
