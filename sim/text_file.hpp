#pragma once

#include <cstdint>
#include <string>

namespace nbdelta::sim {

/// All of a file; of a pipe, until its end. Throws Error with the path; EFBIG where it is longer
/// than `most` bytes.
std::string read_text_file(const std::string& path, std::uint64_t most);

inline constexpr std::uint64_t kLongestManifest = std::uint64_t{64} << 20;

}  // namespace nbdelta::sim
