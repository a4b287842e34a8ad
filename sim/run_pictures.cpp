#include "sim/run_pictures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "sim/plot_parts.hpp"
#include "sim/run_figures.hpp"

namespace nbdelta::sim {
namespace {

std::string time_text(std::int64_t us) {
  const double ms = milliseconds(us);
  return ms >= 10'000 ? fmt::format("{:.1f} s", ms / 1000)
         : ms >= 100  ? fmt::format("{:.0f} ms", ms)
         : ms >= 10   ? fmt::format("{:.1f} ms", ms)
                      : fmt::format("{:.2f} ms", ms);
}

/// Of a time axis.
struct AxisUnit {
  double us;
  const char* name;
};

AxisUnit unit_of(std::int64_t longest_us) {
  return longest_us < 2'000'000 ? AxisUnit{1e3, "ms"} : AxisUnit{1e6, "s"};
}

}  // namespace

Picture draw_window(const std::string& name, const FreezeWindow& window) {
  constexpr unsigned kTop = 8;
  const AxisUnit unit = unit_of(window.length_us());
  const auto at = [&](std::int64_t us) {
    return static_cast<double>(us - window.start_us) / unit.us;
  };
  const double length = std::max(at(window.end_us), 0.001);
  // At least as long as can be seen.
  const auto bar = [&](double start, double end, double row) {
    const double shown = end > start ? std::max(end, start + length * 0.006) : end;
    return Bar{start, shown, row};
  };
  const double freeze_end = at(window.start_us + window.freeze_us);
  const double switch_start = at(window.switch_start_us);
  const double switch_end = at(window.switch_start_us + window.switch_us);
  const double thaw_start = at(window.end_us - window.thaw_us);
  const std::vector<std::string> rows{"freeze", "switch", "thaw", "nbdelta"};
  const std::vector<std::int64_t> lengths{window.freeze_us, window.switch_us, window.thaw_us,
                                          window.own_us()};
  Picture picture{.name = name,
                  .title = "The freeze window: freeze, switch and thaw, and nbdelta's own share",
                  .width = kWidth,
                  .height = height_of_rows(rows.size(), kTop),
                  .script = ink() + row_tics(rows) + place_rows(rows.size(), kTop)};
  std::string& script = picture.script;
  script += fmt::format(
      "set lmargin 9\nset rmargin 12\nset border 1\n"
      "set xrange [0:{:.6g}]\nset xtics {}\nset xlabel '{} since the freeze was asked for'\n",
      length, few_tics(length), unit.name);
  for (std::size_t i = 0; i < rows.size(); ++i)
    script += fmt::format("set label {} at graph 1.03, first {} left textcolor rgb '{}'\n",
                          gnuplot_text(time_text(lengths[i])), i, colour::kInk);
  script += block("$agent", {bar(0, freeze_end, 0), bar(thaw_start, at(window.end_us), 2)});
  script += block("$qemu", {bar(switch_start, switch_end, 1)});
  script += block("$own", {bar(freeze_end, switch_start, 3), bar(switch_end, thaw_start, 3)});
  script += fmt::format("plot {}, {}, {}\n", plot_bars("$agent", colour::kAgent),
                        plot_bars("$qemu", colour::kQemu), plot_bars("$own", colour::kOwn));
  return picture;
}

Picture draw_budget(const std::string& name, const std::vector<LabelledWindow>& windows) {
  constexpr unsigned kTop = 40;
  std::vector<std::string> rows;
  std::vector<Bar> agent;
  std::vector<Bar> qemu;
  std::vector<Bar> own;
  std::int64_t longest_us = 1;
  for (const LabelledWindow& each : windows)
    longest_us = std::max(longest_us, each.window.length_us());
  const AxisUnit unit = unit_of(longest_us);
  std::string labels;
  for (const auto& [text, window] : windows) {
    const auto row = static_cast<double>(rows.size());
    const auto agent_end = static_cast<double>(window.agent_us()) / unit.us;
    const double qemu_end = agent_end + static_cast<double>(window.switch_us) / unit.us;
    const double end = static_cast<double>(window.length_us()) / unit.us;
    agent.push_back({0, agent_end, row});
    qemu.push_back({agent_end, qemu_end, row});
    own.push_back({qemu_end, end, row});
    rows.push_back(text);
    labels += fmt::format("set label {} at graph 1.03, first {} left textcolor rgb '{}'\n",
                          gnuplot_text(time_text(window.length_us())), row, colour::kInk);
  }
  Picture picture{.name = name,
                  .title = "The freeze window's shares: the guest agent's, QEMU's, nbdelta's own",
                  .width = kWidth,
                  .height = height_of_rows(rows.size(), kTop),
                  .script = ink() + row_tics(rows) + place_rows(rows.size(), kTop) + labels};
  // gnuplot's own key would take three lines in a picture as narrow as this.
  const auto key = [&](double x, std::string_view rgb, const char* text) {
    const auto y = [&](unsigned pixel) { return 1 - double{1} * pixel / picture.height; };
    picture.script += fmt::format(
        "set object rect from screen {0:.4f}, screen {1:.4f} to screen {2:.4f}, screen {3:.4f} "
        "fc rgb '{4}' fs solid 1 noborder\n"
        "set label '{5}' at screen {6:.4f}, screen {7:.4f} left textcolor rgb '{8}'\n",
        x, y(26), x + 0.05, y(12), rgb, text, x + 0.07, y(19), colour::kInk);
  };
  key(0.08, colour::kAgent, "agent");
  key(0.36, colour::kQemu, "QEMU");
  key(0.64, colour::kOwn, "nbdelta");
  picture.script += fmt::format(
      "set lmargin 9\nset rmargin 12\nset border 1\n"
      "set xrange [0:{:.6g}]\nset xtics {}\nset xlabel '{}'\n",
      static_cast<double>(longest_us) / unit.us,
      few_tics(static_cast<double>(longest_us) / unit.us), unit.name);
  picture.script += block("$agent", agent) + block("$qemu", qemu) + block("$own", own) +
                    fmt::format("plot {}, {}, {}\n", plot_bars("$agent", colour::kAgent),
                                plot_bars("$qemu", colour::kQemu), plot_bars("$own", colour::kOwn));
  return picture;
}

bool wants_powers(const std::vector<double>& values) {
  const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
  return !values.empty() && *greatest > 50 * std::max(*least, 0.001);
}

Picture draw_windows(const std::string& name, const std::vector<double>& windows_ms) {
  constexpr std::size_t kMostColumns = 40;
  const bool powers = wants_powers(windows_ms);
  std::vector<double> values = windows_ms;
  if (powers)
    for (double& value : values)
      value = std::log10(std::max(value, 0.001));
  const Histogram histogram = histogram_of(values, kMostColumns);
  std::string data;
  std::size_t most = 1;
  for (std::size_t i = 0; i < histogram.counts.size(); ++i) {
    const double middle = histogram.start + (static_cast<double>(i) + 0.5) * histogram.width;
    data += fmt::format("{:.9g} {}\n", middle, histogram.counts[i]);
    most = std::max(most, histogram.counts[i]);
  }
  const double end =
      histogram.start + static_cast<double>(histogram.counts.size()) * histogram.width;
  Picture picture{.name = name,
                  .title = fmt::format("Lengths of {} freeze windows", windows_ms.size()),
                  .width = kWidth,
                  .height = 260,
                  .script = ink()};
  picture.script += fmt::format(
      "$windows << EOD\n{}EOD\n"
      "set lmargin 7\nset rmargin 2\nset bmargin 2.8\nset tmargin 1.6\n"
      "set xrange [{:.9g}:{:.9g}]\nset yrange [0:{}]\nset format y '%.0f'\n"
      "set xlabel 'freeze window, ms'\n"
      "set grid noxtics ytics\n"
      "set style fill solid 1 border rgb '{}'\nset boxwidth {:.9g}\n",
      data, histogram.start, end, static_cast<double>(most) * 1.08, colour::kGrid, histogram.width);
  picture.script += label(0, 1.05, "windows", "left");
  if (powers) {
    std::string tics;
    for (int power = -3; power <= 7; ++power)
      tics += fmt::format("{}'{:g}' {}", power == -3 ? "" : ", ", std::pow(10, power), power);
    picture.script += "set xtics (" + tics + ")\n";
  } else {
    picture.script += "set xtics " + few_tics(end - histogram.start) + "\n";
  }
  picture.script += "set ytics " + few_tics(std::max<double>(static_cast<double>(most), 4)) + "\n";
  picture.script +=
      fmt::format("plot $windows using 1:2 with boxes lc rgb '{}' notitle\n", colour::kGuest);
  return picture;
}

Picture draw_faults(const std::string& name, const std::vector<FaultEffect>& effects) {
  constexpr unsigned kTallRow = 44;
  Picture picture{.name = name,
                  .title = "How long the guest was frozen in the sessions of each fault",
                  .width = kWidth,
                  .height = static_cast<unsigned>(effects.size()) * kTallRow + 70,
                  .script = ink()};
  const auto rows = static_cast<double>(effects.size());
  std::string data;
  double longest = 1000;
  for (std::size_t i = 0; i < effects.size(); ++i) {
    picture.script +=
        fmt::format("set label {} at graph 0.01, first {} left textcolor rgb '{}'\n",
                    gnuplot_text(fmt::format("{} ({})", effects[i].name, effects[i].sessions)),
                    static_cast<double>(i) + 0.3, colour::kInk);
    // What would be drawn at one place is one point, the larger the more it is.
    constexpr double kPlaces = 20;  // of a decade
    std::map<int, std::size_t> places;
    for (const std::int64_t us : effects[i].frozen_us) {
      const double ms = std::max(milliseconds(us), 1.0);
      ++places[static_cast<int>(std::lround(std::log10(ms) * kPlaces))];
      longest = std::max(longest, ms);
    }
    for (const auto& [place, count] : places)
      data += fmt::format("{:.4g} {} {:.2f}\n", std::pow(10, place / kPlaces),
                          static_cast<double>(i) + 0.7,
                          0.5 + 0.45 * std::log10(static_cast<double>(count)));
  }
  picture.script += fmt::format(
      "$frozen << EOD\n{}EOD\n"
      "set lmargin 2\nset rmargin 3\nset bmargin 2.8\nset tmargin 0.6\nset border 1\n"
      "set logscale x\nset xrange [0.9:{:.6g}]\nset yrange [{}:0]\nunset ytics\n"
      "set xtics ('none' 1, '10 ms' 10, '100 ms' 100, '1 s' 1e3, '10 s' 1e4, '100 s' 1e5, "
      "'1000 s' 1e6)\n"
      "set xlabel 'the guest was frozen'\n"
      "plot $frozen using 1:2:3 with points pt 6 ps variable lw 1.5 lc rgb '{}' notitle\n",
      data, longest * 1.3, rows, colour::kFault);
  return picture;
}

}  // namespace nbdelta::sim
