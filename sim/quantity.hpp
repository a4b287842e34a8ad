#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "client/clock.hpp"

namespace nbdelta::sim {

using client::Clock;

/// Quantities as people write them, always with their unit: "64 KiB", "1.5 GiB", "20 MiB/s",
/// "500 us". All throw Error (EINVAL) that quotes the text and lists the units.
std::uint64_t parse_bytes(std::string_view text);             // B, KiB, MiB, GiB, TiB
std::uint64_t parse_bytes_per_second(std::string_view text);  // the same with "/s"
Clock::Duration parse_time(std::string_view text);            // us, ms, s, min, h

enum class Quantity : std::uint8_t { size, rate, time };
/// In bytes, bytes a second or nanoseconds, not rounded yet: for what has limits. Throws likewise.
double parse_quantity(Quantity quantity, std::string_view text);

std::string exact_bytes(std::uint64_t bytes);   // "1088 MiB": the largest unit without a fraction
std::string format_time(Clock::Duration time);  // "1.25 ms": three significant digits

}  // namespace nbdelta::sim
