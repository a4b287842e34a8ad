#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sim/gnuplot.hpp"

namespace nbdelta::sim {

// Parts of gnuplot's scripts that several pictures have.

// Pixels: a phone shows most of them, and texts of 15 stay readable.
inline constexpr unsigned kWidth = 420;
inline constexpr unsigned kRow = 24;
inline constexpr unsigned kBar = 14;

double milliseconds(std::int64_t us);

/// The colours of all that is no data.
std::string ink();

/// A text at a place of the graph, which is 1 wide and 1 high; `how`: as of 'set label'.
std::string label(double x, double y, const std::string& text, std::string_view how);

/// Bars over rows that count from 0 downwards.
struct Bar {
  double start;
  double end;
  double row;
};

/// Their data; `name` begins with '$'.
std::string block(const std::string& name, const std::vector<Bar>& bars);
std::string plot_bars(const std::string& name, std::string_view rgb);
/// About four tics from 0 to the highest value, at 1, 2 or 5 times a power of ten.
std::string few_tics(double highest);
/// The place of a graph with so many rows, which begins `top` pixels below the picture's top; and
/// the height of the picture, with room for the axis.
std::string place_rows(std::size_t rows, unsigned top);
unsigned height_of_rows(std::size_t rows, unsigned top);
std::string row_tics(const std::vector<std::string>& names);

}  // namespace nbdelta::sim
