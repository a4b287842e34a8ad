#pragma once

#include <cstdint>
#include <functional>

namespace nbdelta::image {

/// What a view says of an extent. The values are the flags of NBD's base:allocation context:
/// bit 0 is NBD_STATE_HOLE, bit 1 is NBD_STATE_ZERO (NBD protocol, "Metadata querying").
/// docs/extents.md tells which view reports which.
enum class State : std::uint8_t {
  data = 0,       // in a changed view: changed, and not known to read zero
  unchanged = 1,  // only in a changed view: the same as in the previous backup
  zero = 2,       // reads zero; in a changed view: changed
  hole = 3,       // unallocated, reads zero; never in a changed view
};

/// Reads zero, whatever stands in the file.
constexpr bool reads_zero(State state) {
  return (static_cast<unsigned>(state) & 2U) != 0;
}

/// `[offset, offset + length)` of the virtual disk, bytes.
struct Extent {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  State state = State::data;

  std::uint64_t end() const { return offset + length; }
  bool operator==(const Extent&) const = default;
};

/// Receives extents in order, each beginning where the one before ended; neighbours may have the
/// same state. Returns false to end the walk.
using ExtentSink = std::function<bool(const Extent&)>;

}  // namespace nbdelta::image
