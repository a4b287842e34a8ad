#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace nbdelta::sim {

/// `nbdelta-sim report`; returns what runs it.
std::function<int()> add_report_command(CLI::App& app);

}  // namespace nbdelta::sim
