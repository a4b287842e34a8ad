#pragma once

#include "base/error.hpp"
#include "image/extent_map.hpp"

namespace nbdelta::testing {

/// The map's own invariants, seen through its cursors.
inline void check_invariants(const image::ExtentMap& map) {
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

}  // namespace nbdelta::testing
