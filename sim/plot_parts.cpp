#include "sim/plot_parts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace nbdelta::sim {

double milliseconds(std::int64_t us) {
  return static_cast<double>(us) / 1e3;
}

std::string ink() {
  return fmt::format(
      "set border 3 lc rgb '{0}'\n"
      "set tics nomirror textcolor rgb '{0}'\n"
      "set key textcolor rgb '{0}'\n"
      "set xlabel offset 0,0.5 textcolor rgb '{0}'\n"
      "set grid x lc rgb '{1}' lw 1\n",
      colour::kInk, colour::kGrid);
}

std::string label(double x, double y, const std::string& text, std::string_view how) {
  return fmt::format("set label {} at graph {:.4f}, graph {:.4f} {} textcolor rgb '{}'\n",
                     gnuplot_text(text), x, y, how, colour::kInk);
}

std::string block(const std::string& name, const std::vector<Bar>& bars) {
  std::string text = name + " << EOD\n";
  for (const Bar& bar : bars)
    text += fmt::format("{:.6g} {} {:.6g}\n", bar.start, bar.row, bar.end - bar.start);
  // gnuplot takes no empty block.
  return text + (bars.empty() ? "NaN NaN NaN\nEOD\n" : "EOD\n");
}

std::string plot_bars(const std::string& name, std::string_view rgb) {
  return fmt::format("{} using 1:2:3:(0) with vectors nohead lw {} lc rgb '{}' notitle", name, kBar,
                     rgb);
}

std::string few_tics(double highest) {
  double step = std::pow(10, std::floor(std::log10(std::max(highest, 1e-9))) - 1);
  for (const double factor : {2.0, 2.5, 2.0, 2.0, 2.5})  // 1, 2, 5, 10, 20, 50
    if (highest / step > 5)
      step *= factor;
  return fmt::format("{:.6g}", step);
}

unsigned height_of_rows(std::size_t rows, unsigned top) {
  constexpr unsigned kAxis = 56;
  return top + static_cast<unsigned>(rows) * kRow + kAxis;
}

std::string place_rows(std::size_t rows, unsigned top) {
  const auto screen = [&](unsigned pixel) {
    return 1 - static_cast<double>(pixel) / static_cast<double>(height_of_rows(rows, top));
  };
  return fmt::format("set tmargin at screen {:.5f}\nset bmargin at screen {:.5f}\n", screen(top),
                     screen(top + static_cast<unsigned>(rows) * kRow));
}

std::string row_tics(const std::vector<std::string>& names) {
  std::string tics;
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::string format;  // gnuplot takes a tic's text for one
    for (const char c : names[i])
      format += c == '%' ? "%%" : std::string(1, c);
    tics += fmt::format("{}{} {}", i == 0 ? "" : ", ", gnuplot_text(format), i);
  }
  return fmt::format("set yrange [{}:-0.7]\nset ytics scale 0 ({})\n",
                     static_cast<double>(names.size()) - 0.3, tics);
}

}  // namespace nbdelta::sim
