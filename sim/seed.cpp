#include "sim/seed.hpp"

#include <charconv>

#include "base/error.hpp"

namespace nbdelta::sim {

std::uint64_t parse_seed(std::string_view option, std::string_view text) {
  std::uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || end != text.data() + text.size() || seed > kLastSeed)
    fail(EINVAL, "{}: '{}' is no seed: expected a number from 0 to {}", option, text, kLastSeed);
  return seed;
}

}  // namespace nbdelta::sim
