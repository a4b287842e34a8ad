// What `nbdinfo --map --json` might have printed; one byte before it chooses how it is read.

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "nbdkit-plugin/dirty_map.hpp"
#include "tests/fuzz/memory_file.hpp"

namespace nbdelta {
namespace {

/// The map's own invariants, seen through its cursors.
void check(const image::ExtentMap& map) {
  image::Extent last{.offset = 0, .length = 0, .state = image::State::data};
  std::uint64_t data = 0;
  for (auto cursor = map.begin(); !cursor.at_end(); cursor.next()) {
    const image::Extent& extent = cursor.extent();
    invariant(extent.offset == last.end(), "runs are in order");
    invariant(last.length == 0 || extent.state != last.state, "neighbours differ");
    invariant(cursor.data_before() == data, "data before a run is counted");
    invariant(map.at(extent.offset).extent() == extent, "a run is found by its offset");
    invariant(map.at(extent.end() - 1).extent() == extent, "a run is found by its end");
    if (extent.state == image::State::data)
      data += extent.length;
    last = extent;
  }
  invariant(last.end() == map.size() && data == map.bytes(image::State::data), "the map is whole");
}

}  // namespace
}  // namespace nbdelta

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nbdelta;
  static const testing::MemoryFile file;
  if (size == 0)
    return 0;
  constexpr std::uint64_t kSizes[] = {4096, kMiB, 16 * kTiB, INT64_MAX};
  file.hold({data + 1, size - 1});
  try {
    check(plugin::read_map_from_json(file.path(), (data[0] & 4) != 0 ? "qemu:dirty-bitmap:b" : "",
                                     kSizes[data[0] & 3]));
  } catch (const Error&) {
    return 0;
  }
  return 0;
}
