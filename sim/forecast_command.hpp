#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace nbdelta::sim {

/// Adds `nbdelta-sim forecast`, and sets `run` when that was asked for: its exit status.
void add_forecast(CLI::App& app, std::function<int()>& run);

}  // namespace nbdelta::sim
