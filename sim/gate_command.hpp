#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace nbdelta::sim {

/// `nbdelta-sim gate`. Returns what runs it: the exit status.
std::function<int()> add_gate_command(CLI::App& app);

}  // namespace nbdelta::sim
