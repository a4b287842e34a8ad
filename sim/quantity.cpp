#include "sim/quantity.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>
#include <span>

#include "base/error.hpp"

namespace nbdelta::sim {
namespace {

struct Unit {
  std::string_view name;
  double factor;
};

constexpr Unit kSizes[] = {
    {"B", 1}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
constexpr Unit kRates[] = {
    {"B/s", 1}, {"KiB/s", 0x1p10}, {"MiB/s", 0x1p20}, {"GiB/s", 0x1p30}, {"TiB/s", 0x1p40}};
// Nanoseconds.
constexpr Unit kTimes[] = {{"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"min", 60e9}, {"h", 3600e9}};

struct Kind {
  std::string_view name;
  std::string_view example;
  std::span<const Unit> units;
};

Kind kind_of(Quantity quantity) {
  switch (quantity) {
    case Quantity::size:
      return {"size", "64 KiB", kSizes};
    case Quantity::rate:
      return {"rate", "20 MiB/s", kRates};
    case Quantity::time:
      break;
  }
  return {"time", "5 ms", kTimes};
}

std::uint64_t rounded(Quantity quantity, std::string_view text) {
  return static_cast<std::uint64_t>(std::llround(parse_quantity(quantity, text)));
}

}  // namespace

/// Never negative.
double parse_quantity(Quantity quantity, std::string_view text) {
  const Kind kind = kind_of(quantity);
  double number = 0;
  const auto [end, status] =
      std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  while (unit.starts_with(' '))
    unit.remove_prefix(1);
  std::string names;
  for (const Unit& each : kind.units) {
    names += (names.empty() ? "" : ", ") + std::string(each.name);
    // Half the range, so that sums of a few do not overflow.
    if (status == std::errc() && number >= 0 && unit == each.name && number * each.factor < 0x1p62)
      return number * each.factor;
  }
  fail(EINVAL, "'{}' is not a {}: expected a number and a unit, as in \"{}\" (units: {})", text,
       kind.name, kind.example, names);
}

std::uint64_t parse_bytes(std::string_view text) {
  return rounded(Quantity::size, text);
}

std::uint64_t parse_bytes_per_second(std::string_view text) {
  return rounded(Quantity::rate, text);
}

Clock::Duration parse_time(std::string_view text) {
  return std::chrono::nanoseconds(rounded(Quantity::time, text));
}

std::string exact_bytes(std::uint64_t bytes) {
  const Unit* unit = kSizes;
  std::uint64_t count = bytes;
  for (; count != 0 && count % 1024 == 0 && unit + 1 != std::end(kSizes); ++unit)
    count /= 1024;
  return fmt::format("{} {}", count, unit->name);
}

std::string format_time(Clock::Duration time) {
  const double nanoseconds = std::chrono::duration<double, std::nano>(time).count();
  const auto format = [](double value, std::string_view unit) {
    const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
    return fmt::format("{:.{}f} {}", value, decimals, unit);
  };
  if (nanoseconds < 999.5e3)
    return format(nanoseconds / 1e3, "us");
  if (nanoseconds < 999.5e6)
    return format(nanoseconds / 1e6, "ms");
  return format(nanoseconds / 1e9, "s");
}

}  // namespace nbdelta::sim
