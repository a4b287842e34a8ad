#include <fmt/format.h>

#include <boost/json/serialize.hpp>

#include "sim/block_graph.hpp"

// What QEMU tells of a node.
namespace nbdelta::sim {

namespace {

std::string file_name_of(const Node& node);

/// Whether who opens the image by its path alone has what is open below it too.
bool leads_below(const Node& node) {
  const auto named = node.image->backing();
  if (node.driver != "qcow2" || !named)
    return node.backing == nullptr;
  return node.backing != nullptr && file_name_of(*node.backing) == named->path;
}

/// As QEMU writes JSON.
std::string options_of(const Node& node) {
  std::string backing;
  if (!leads_below(node))
    backing = fmt::format(R"("backing": {}, )",
                          node.backing == nullptr ? "null" : options_of(*node.backing));
  return fmt::format(R"({{{}"driver": "{}", "file": {{"driver": "file", "filename": {}}}}})",
                     backing, node.driver, boost::json::serialize(boost::json::string(node.path)));
}

/// QEMU calls an image by all its options where its header does not lead to what is below it.
std::string file_name_of(const Node& node) {
  return leads_below(node) ? node.path : "json:" + options_of(node);
}

qapi::ImageInfo image_info(const Node& node, bool with_chain) {
  qapi::ImageInfo info;
  info.filename = file_name_of(node);
  info.format = node.driver;
  info.virtual_size = node.image->granules() * node.image->granule_size();
  info.actual_size = node.image->allocated();
  if (const auto backing = node.image->backing()) {
    info.backing_filename = backing->path;
    info.full_backing_filename = backing->path;
    info.backing_format = backing->format;
  }
  if (node.driver == "qcow2")
    info.format_specific = boost::json::value{{"type", "qcow2"},
                                              {"data",
                                               {{"compat", "1.1"},
                                                {"lazy-refcounts", false},
                                                {"refcount-bits", 16},
                                                {"corrupt", false}}}};
  if (with_chain && node.backing != nullptr)
    info.backing_image = qapi::to_json(image_info(*node.backing, true));
  return info;
}

}  // namespace

qapi::NodeInfo describe(const BlockGraph& graph, const Node& node, bool flat) {
  qapi::NodeInfo info;
  info.node_name = node.name;
  info.driver = node.driver;
  info.file = node.is_format() ? file_name_of(node) : node.path;
  info.read_only = node.read_only;
  info.write_threshold = node.write_threshold;
  info.cache = qapi::NodeInfo::Cache{.direct = node.direct};
  info.detect_zeroes = node.detect_zeroes;
  if (!node.is_format()) {
    info.image.filename = node.path;
    info.image.format = node.driver;
    if (node.driver == "null-co")
      info.image.virtual_size = std::uint64_t{1} << 30;
    for (const Node* user : graph.users_of(node)) {
      info.image.virtual_size = user->image->allocated();
      info.image.actual_size = user->image->allocated();
    }
    return info;
  }
  info.image = image_info(node, !flat);
  for (const Node* each = node.backing; each != nullptr && !flat; each = each->backing)
    ++info.backing_depth;
  const std::uint64_t granule = node.image->granule_size();
  if (!node.bitmaps.empty())
    info.bitmaps.emplace();
  for (auto it = node.bitmaps.rbegin(); it != node.bitmaps.rend(); ++it) {  // the newest first
    const Bitmap& bitmap = *it;
    qapi::BitmapInfo described;
    described.name = bitmap.name;
    described.count = bitmap.count() * granule;
    described.granularity = granule;
    described.recording = bitmap.recording;
    described.busy = bitmap.busy();
    described.persistent = bitmap.persistent;
    if (bitmap.inconsistent)
      described.inconsistent = true;
    info.bitmaps->push_back(described);
  }
  return info;
}

}  // namespace nbdelta::sim
