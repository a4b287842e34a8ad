#include "base/units.hpp"

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

namespace nbdelta {
namespace {

constexpr std::string_view kSuffixes = "KMGTPE";

}  // namespace

std::uint64_t parse_size(std::string_view text, std::string_view what) {
  const auto refuse = [&]() {
    fail(EINVAL, "{}: '{}' is not a size: expected bytes, or a number with K, M, G, T, P or E",
         what, text);
  };
  std::uint64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc())
    refuse();
  std::string_view suffix(end, static_cast<std::size_t>(text.data() + text.size() - end));
  if (suffix.empty())
    return value;
  const auto power =
      kSuffixes.find(static_cast<char>(std::toupper(static_cast<unsigned char>(suffix[0]))));
  const std::string_view rest = suffix.substr(1);
  const bool plain_bytes = suffix == "B" || suffix == "b";
  if (!plain_bytes && (power == std::string_view::npos ||
                       !(rest.empty() || rest == "iB" || rest == "B" || rest == "b")))
    refuse();
  if (plain_bytes)
    return value;
  return checked_mul(value, std::uint64_t{1} << (10 * (power + 1)), what);
}

std::string format_size(std::uint64_t bytes) {
  if (bytes < kKiB)
    return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  std::size_t power = 0;
  while (value >= 1023.5 && power < kSuffixes.size()) {
    value /= 1024;
    ++power;
  }
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f} {}iB", value, decimals, kSuffixes[power - 1]);
}

std::string format_duration(double seconds) {
  if (seconds < 59.5)
    return fmt::format("{:.{}f} s", seconds, seconds < 9.995 ? 2 : 0);
  const auto whole = static_cast<std::uint64_t>(std::llround(seconds));
  if (whole < 3600)
    return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

}  // namespace nbdelta
