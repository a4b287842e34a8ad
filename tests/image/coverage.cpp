#include "tests/image/coverage.hpp"

#include <fmt/format.h>

#include "base/error.hpp"
#include "base/units.hpp"
#include "tests/image/layer_plan.hpp"

namespace nbdelta::testing {
namespace {

/// Every feature that a run has to cover.
std::vector<std::string> feature_table() {
  std::vector<std::string> table{
      "version 2",
      "version 3",
      "lazy refcounts",
      "preallocation off",
      "preallocation metadata",
      "preallocation falloc",
      "extended L2",
      "subcluster write",
      "zlib, write -c",
      "zstd, write -c",
      "zlib, convert -c",
      "zstd, convert -c",
      "write over compressed",
      "write -z",
      "write -z -u",
      "discard",
      "external data file",
      "raw external data file",
      "snapshots",
      "grown",
      "shrunk",
      "size no multiple of the cluster",
      "raw",
      "raw, length no multiple of 512",
      "raw backing file",
      "qcow2 backing file",
      "backing file shorter",
      "backing file longer",
      "no bitmap",
      "several bitmaps",
      "bitmap enabled",
      "bitmap disabled",
      "bitmap stopped between writes",
  };
  for (unsigned depth = 0; depth <= 3; ++depth)
    table.push_back(fmt::format("{} backing files", depth));
  for (unsigned bits = kMinClusterBits; bits <= kMaxClusterBits; ++bits) {
    table.push_back("cluster " + format_size(1U << bits));
    table.push_back("granularity " + format_size(1U << bits));
  }
  for (unsigned order = 0; order <= 6; ++order)
    table.push_back(fmt::format("refcount_bits {}", 1U << order));
  return table;
}

}  // namespace

Coverage::Coverage() {
  for (std::string& feature : feature_table())
    seeds_.emplace(std::move(feature), 0);
}

void Coverage::add(const RandomImage& image) {
  for (const std::string& feature : image.features) {
    const auto known = seeds_.find(feature);
    invariant(known != seeds_.end(), "the feature table has every feature");
    ++known->second;
  }
}

std::string Coverage::table() const {
  std::string text = "seeds  feature\n";
  for (const auto& [feature, seeds] : seeds_)
    text += fmt::format("{:5}  {}\n", seeds, feature);
  return text;
}

std::vector<std::string> Coverage::missing() const {
  std::vector<std::string> names;
  for (const auto& [feature, seeds] : seeds_)
    if (seeds == 0)
      names.push_back(feature);
  return names;
}

}  // namespace nbdelta::testing
