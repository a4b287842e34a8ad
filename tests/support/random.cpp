#include "tests/support/random.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.hpp"

namespace nbdelta::testing {
namespace {

std::uint64_t seed_from_environment() {
  const char* text = std::getenv("NBDELTA_SEED");  // NOLINT(concurrency-mt-unsafe)
  if (text == nullptr || *text == '\0') {
    std::random_device device;
    return std::uint64_t{device()};  // 32 bits: short enough to be typed
  }
  char* end = nullptr;
  const std::uint64_t seed = std::strtoull(text, &end, 0);
  if (*end != '\0')
    fail(EINVAL, "NBDELTA_SEED: '{}' is not a number", text);
  return seed;
}

}  // namespace

Random Random::from_environment() {
  const std::uint64_t seed = seed_from_environment();
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  fmt::print("seed {0} (again: NBDELTA_SEED={0} ctest -R '{1}')\n", seed,
             test == nullptr ? "NAME" : std::string(test->test_suite_name()) + "." + test->name());
  return Random(seed);
}

void Random::fill(std::span<std::byte> out) {
  while (!out.empty()) {
    const std::uint64_t word = next();
    const std::size_t n = std::min(out.size(), sizeof word);
    std::memcpy(out.data(), &word, n);
    out = out.subspan(n);
  }
}

}  // namespace nbdelta::testing
