#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image/disk.hpp"
#include "tests/support/random.hpp"

namespace nbdelta::testing {

inline constexpr unsigned kMinClusterBits = 9;
inline constexpr unsigned kMaxClusterBits = 21;

/// What one image file of a chain shall be.
struct LayerPlan {
  std::string name;  // in the folder
  image::Format format = image::Format::qcow2;
  std::uint64_t size = 0;
  unsigned version = 3;
  unsigned cluster_bits = 16;
  unsigned refcount_bits = 16;
  bool lazy_refcounts = false;
  bool extended_l2 = false;
  bool zstd = false;
  bool compresses = false;  // write -c
  bool converts = false;    // convert -c
  std::string preallocation = "off";
  bool data_file = false;
  bool raw_data_file = false;
  unsigned snapshots = 0;
  bool resizes = false;  // between writes
  std::uint64_t bitmaps = 0;
  const LayerPlan* backing = nullptr;  // in the same chain

  std::uint64_t cluster() const { return std::uint64_t{1} << cluster_bits; }
};

/// Draws the layers of an image, the image itself first.
std::vector<LayerPlan> plan_layers(std::uint64_t seed, Random& random);

/// Goes through 0 to count - 1 as the seed counts up, in another order each time round.
constexpr std::uint64_t turn(std::uint64_t seed, std::uint64_t count) {
  return (seed + seed / count * 5) % count;
}

}  // namespace nbdelta::testing
