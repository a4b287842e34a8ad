#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "image/disk.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {

/// An image that qemu-img and qemu-io made, with features drawn at random.
struct RandomImage {
  std::string path;
  image::Format format = image::Format::qcow2;
  /// The image itself first, then its backing files.
  std::vector<image::Format> layers;

  struct Bitmap {
    std::string name;
    std::uint64_t granularity = 0;
    bool enabled = false;
  };
  std::vector<Bitmap> bitmaps;

  std::set<std::string, std::less<>> features;  // names of the feature table
  std::vector<std::string> commands;            // how it was made, for messages
};

/// Draws an image and makes it in `folder`. What matters most goes round with the seed, so that
/// kSeedsThatCover seeds in a row cover the whole feature table most of the time, and kMostSeeds
/// always. Throws Error.
RandomImage draw_image(std::uint64_t seed, const TempFolder& folder);

inline constexpr std::uint64_t kSeedsThatCover = 64;
inline constexpr std::uint64_t kMostSeeds = 512;

}  // namespace nbdelta::testing
