// What `nbdinfo --map --json` might have printed; one byte before it chooses how it is read.

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "nbdkit-plugin/dirty_map.hpp"
#include "tests/fuzz/map_invariants.hpp"
#include "tests/fuzz/memory_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nbdelta;
  static const testing::MemoryFile file;
  if (size == 0)
    return 0;
  constexpr std::uint64_t kSizes[] = {4096, kMiB, 16 * kTiB, INT64_MAX};
  file.hold({data + 1, size - 1});
  try {
    testing::check_invariants(plugin::read_map_from_json(
        file.path(), (data[0] & 4) != 0 ? "qemu:dirty-bitmap:b" : "", kSizes[data[0] & 3]));
  } catch (const Error&) {
    return 0;
  }
  return 0;
}
