#include "tests/image/layer_plan.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/arithmetic.hpp"

namespace nbdelta::testing {
namespace {

using image::Format;

constexpr unsigned kMinExtendedL2Bits = 14;

/// What an image is mainly about; the rest is drawn around it.
enum class Theme : std::uint8_t {
  version_2,
  subclusters,
  subclusters_preallocated,
  written_zlib,
  written_zstd,
  converted_zlib,
  converted_zstd,
  data_file,
  raw_data_file,
  snapshots,
  preallocated_metadata,
  preallocated_falloc,
  lazy_refcounts,
  resized,
  raw,
  bitmaps,
};
constexpr std::uint64_t kThemes = 16;

class Planner {
 public:
  Planner(std::uint64_t seed, Random& random)
      : seed_(seed), random_(random), theme_(static_cast<Theme>(turn(seed, kThemes))) {}

  std::vector<LayerPlan> plan_chain() {
    std::vector<LayerPlan> layers(1 + backing_files());
    for (std::size_t i = layers.size(); i-- > 0;)
      plan(layers[i], i, layers.size(), i + 1 < layers.size() ? &layers[i + 1] : nullptr);
    return layers;
  }

 private:
  std::uint64_t backing_files() const {
    const bool alone = theme_ == Theme::raw || theme_ == Theme::raw_data_file;
    return alone ? 0 : turn(seed_ / kThemes + seed_, 4);
  }

  void plan(LayerPlan& layer, std::size_t depth, std::size_t depths, const LayerPlan* backing) {
    layer.name = fmt::format("layer{}", depth);
    layer.size = draw_size();
    if (backing != nullptr) {
      layer.backing = backing;
      if (random_.chance(40))
        layer.size = round_up(backing->size, 512);
    }
    const bool is_bottom = depth + 1 == depths;
    if (theme_ == Theme::raw || (depth > 0 && is_bottom && random_.chance(50))) {
      layer.format = Format::raw;
      return;
    }
    layer.cluster_bits = static_cast<unsigned>(random_.between(kMinClusterBits, kMaxClusterBits));
    layer.compresses = random_.chance(40);
    if (depth == 0) {
      plan_top(layer);
      if (layer.version == 3)
        layer.bitmaps = theme_ == Theme::bitmaps ? 3 : random_.below(3);
    } else {
      layer.version = random_.chance(20) ? 2 : 3;
      layer.extended_l2 = layer.version == 3 && random_.chance(30);
      layer.zstd = layer.version == 3 && random_.chance(50);
    }
    if (layer.extended_l2)
      layer.cluster_bits = std::max(layer.cluster_bits, kMinExtendedL2Bits);
    if (random_.chance(50))
      layer.size = round_up(layer.size, layer.cluster());
  }

  std::uint64_t draw_size() {
    const std::uint64_t longest = random_.chance(10) ? 32 * kMiB : 6 * kMiB;
    return round_up(random_.between(kMiB, longest), 512);
  }

  void plan_top(LayerPlan& layer) {
    layer.cluster_bits = kMinClusterBits + static_cast<unsigned>(turn(seed_ / 2 + seed_, 13));
    layer.refcount_bits = 1U << turn(seed_, 7);
    layer.zstd = random_.chance(50);
    layer.snapshots = random_.chance(20) && layer.refcount_bits > 2 ? 1 : 0;
    switch (theme_) {
      case Theme::version_2:
        layer.version = 2;
        layer.refcount_bits = 16;
        layer.zstd = false;
        break;
      case Theme::subclusters_preallocated:
        layer.extended_l2 = true;
        layer.preallocation = random_.chance(50) ? "metadata" : "falloc";
        break;
      case Theme::subclusters:
        layer.extended_l2 = true;
        break;
      case Theme::written_zlib:
      case Theme::written_zstd:
        layer.compresses = true;
        layer.zstd = theme_ == Theme::written_zstd;
        break;
      case Theme::converted_zlib:
      case Theme::converted_zstd:
        layer.converts = true;
        layer.zstd = theme_ == Theme::converted_zstd;
        break;
      case Theme::raw_data_file:
        layer.raw_data_file = true;
        [[fallthrough]];
      case Theme::data_file:
        layer.data_file = true;
        layer.compresses = false;
        layer.snapshots = 0;
        break;
      case Theme::snapshots:
        layer.refcount_bits = std::max(layer.refcount_bits, 4U);
        layer.snapshots = 3;
        break;
      case Theme::preallocated_metadata:
        layer.preallocation = "metadata";
        break;
      case Theme::preallocated_falloc:
        layer.preallocation = "falloc";
        break;
      case Theme::lazy_refcounts:
        layer.lazy_refcounts = true;
        break;
      case Theme::resized:
        layer.resizes = true;
        layer.snapshots = 0;
        break;
      case Theme::raw:
      case Theme::bitmaps:
        break;
    }
    // Compressed clusters share theirs, and each snapshot counts them once more.
    if (layer.snapshots > 0 && (layer.compresses || layer.converts) && layer.version == 3)
      layer.refcount_bits = std::max(layer.refcount_bits, 16U);
    // QEMU: a backing file and preallocation need extended L2 entries.
    if (layer.preallocation != "off" && layer.backing != nullptr)
      layer.extended_l2 = true;
  }

  const std::uint64_t seed_;
  Random& random_;
  const Theme theme_;
};

}  // namespace

std::vector<LayerPlan> plan_layers(std::uint64_t seed, Random& random) {
  return Planner(seed, random).plan_chain();
}

}  // namespace nbdelta::testing
