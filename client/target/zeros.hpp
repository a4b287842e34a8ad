#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/arithmetic.hpp"

namespace nbdelta::client::target {

/// Zeros to write where a range cannot be zeroed otherwise: as many as are left, at most a MiB.
inline std::span<const std::byte> zeros(std::uint64_t left) {
  static const std::vector<std::byte> bytes(kMiB);
  return std::span(bytes).first(std::min<std::uint64_t>(bytes.size(), left));
}

}  // namespace nbdelta::client::target
