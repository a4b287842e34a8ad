// The blocks of a packed export's map, as a server might send them.

#include <algorithm>
#include <array>
#include <span>

#include "base/error.hpp"
#include "tests/fuzz/map_invariants.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nbdelta;
  image::ExtentMap map;
  try {
    for (auto left = std::as_bytes(std::span(data, size)); !left.empty();) {
      std::array<std::byte, image::ExtentMap::kBlockBytes> block{};
      const std::size_t length = std::min(left.size(), block.size());
      std::copy_n(left.begin(), length, block.begin());
      left = left.subspan(length);
      map.append_encoded(block);
    }
  } catch (const Error&) {
    return 0;
  }
  testing::check_invariants(map);
  return 0;
}
