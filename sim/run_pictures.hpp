#pragma once

#include <string>
#include <vector>

#include "sim/gnuplot.hpp"
#include "sim/run_figures.hpp"
#include "sim/run_file.hpp"

namespace nbdelta::sim {

// What is to be drawn of runs; `name` is the picture's.

/// States and commands, the guest's requests, overlays and the pull of one session, over time.
Picture draw_timeline(const std::string& name, const RunSession& session);

/// What the freeze window of a session is made of.
Picture draw_window(const std::string& name, const FreezeWindow& window);

/// Of one or more windows, each with its label.
struct LabelledWindow {
  std::string label;
  FreezeWindow window;
};
Picture draw_budget(const std::string& name, const std::vector<LabelledWindow>& windows);

/// Whether the lengths of windows are so different that the histogram's columns are powers of ten.
bool wants_powers(const std::vector<double>& values);
/// How long windows took, milliseconds.
Picture draw_windows(const std::string& name, const std::vector<double>& windows_ms);

/// How long the guest was frozen in the sessions that each fault fell upon.
Picture draw_faults(const std::string& name, const std::vector<FaultEffect>& effects);

}  // namespace nbdelta::sim
