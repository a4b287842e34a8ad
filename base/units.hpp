#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nbdelta {

/// Bytes from a decimal number with an optional suffix K, M, G, T, P or E (powers of 1024, any
/// case, an optional "iB" or "B" after it). Throws Error (EINVAL) that names `what` and quotes
/// the text.
std::uint64_t parse_size(std::string_view text, std::string_view what);

/// Bytes for people: "512 B", "1.5 GiB"; three significant digits.
std::string format_size(std::uint64_t bytes);

/// Seconds for people: "0.42 s", "3 min 05 s", "2 h 07 min".
std::string format_duration(double seconds);

}  // namespace nbdelta
