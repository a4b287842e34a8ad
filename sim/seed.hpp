#pragma once

#include <cstdint>
#include <string_view>

namespace nbdelta::sim {

/// The number behind it is none, so that what counts seeds can count beyond the last one.
inline constexpr std::uint64_t kLastSeed = UINT64_MAX - 1;

/// Decimal, as every command takes it. `option` is for messages. Throws Error (EINVAL).
std::uint64_t parse_seed(std::string_view option, std::string_view text);

}  // namespace nbdelta::sim
