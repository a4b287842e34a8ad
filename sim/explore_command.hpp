#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace nbdelta::sim {

/// `nbdelta-sim explore`. Returns what runs it: the exit status.
std::function<int()> add_explore_command(CLI::App& app);

}  // namespace nbdelta::sim
