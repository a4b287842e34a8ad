#include "sim/block_graph.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <utility>

namespace nbdelta::sim {

std::uint64_t Bitmap::count() const {
  return static_cast<std::uint64_t>(std::count(bits.begin(), bits.end(), true));
}

Bitmap* Node::find_bitmap(const std::string& wanted) {
  for (Bitmap& bitmap : bitmaps)
    if (bitmap.name == wanted)
      return &bitmap;
  return nullptr;
}

BlockGraph::~BlockGraph() = default;

namespace {

/// An image that cannot be written to is a refusal too.
template <class Act>
void or_refuse(const Act& act) {
  try {
    act();
  } catch (const Error& error) {
    refuse("{}", error.what());
  }
}

}  // namespace

std::string BlockGraph::make_up_name() {
  std::string name;
  do {
    made_up_ = made_up_ * 6364136223846793005U + 1442695040888963407U;
    name = fmt::format("#block{:03}", (made_up_ >> 33) % 10000);
  } while (find(name) != nullptr);
  return name;
}

Node& BlockGraph::open(const NodeOptions& options) {
  if (find(options.name) != nullptr)
    refuse("Duplicate nodes with node-name='{}'", options.name);
  std::shared_ptr<Image> image;
  try {
    image = host_->open(options.path, options.driver);
  } catch (const Error& error) {
    refuse("{}", error.what());
  }
  if (!options.read_only && !host_->lock_for_writing(options.path, true))
    refuse("Failed to get \"write\" lock");

  auto file = std::make_unique<Node>();
  file->name = options.file_name.empty() ? make_up_name() + "f" : options.file_name;
  file->driver = "file";
  file->path = options.path;
  file->read_only = options.read_only;
  file->direct = options.direct;
  auto node = std::make_unique<Node>();
  node->name = options.name.empty() ? make_up_name() : options.name;
  node->driver = options.driver;
  node->path = options.path;
  node->file = file.get();
  node->image = std::move(image);
  node->read_only = options.read_only;
  node->direct = options.direct;
  node->by_user = !options.name.empty();
  node->backing_is_none = options.no_backing;
  load_bitmaps(*node);
  if (!node->read_only)
    store_bitmaps(*node, true);
  Node& opened = *node;
  nodes_.push_back(std::move(file));
  nodes_.push_back(std::move(node));
  if (const auto backing = opened.image->backing(); backing && !options.no_backing) {
    try {
      opened.backing = &open({.driver = backing->format,
                              .name = {},
                              .file_name = {},
                              .path = backing->path,
                              .read_only = true,
                              .no_backing = false,
                              .direct = options.direct});
    } catch (const BlockError& error) {
      const std::string why = error.what();
      opened.by_user = false;
      collect();
      refuse("Could not open backing file: {}", why);
    }
  }
  return opened;
}

void BlockGraph::add_device(const std::string& drive, const std::string& id, Node& root) {
  devices_.push_back({.name = drive, .id = id, .removable = false, .root = &root});
}

Node* BlockGraph::find(const std::string& name) const {
  for (const auto& node : nodes_)
    if (!name.empty() && node->name == name)
      return node.get();
  return nullptr;
}

Node& BlockGraph::lookup(const std::string& name) const {
  for (const Device& device : devices_)
    if (!device.name.empty() && device.name == name && device.root != nullptr)
      return *device.root;
  if (Node* node = find(name))
    return *node;
  refuse("Cannot find device='{0}' nor node-name='{0}'", name);
}

Device* BlockGraph::device_of(const Node& root) {
  for (Device& device : devices_)
    if (device.root == &root)
      return &device;
  return nullptr;
}

WriteNumber BlockGraph::read(const Node& top, std::uint64_t granule) const {
  for (const Node* node = &top; node != nullptr; node = node->backing) {
    if (granule >= node->image->granules())
      return 0;
    switch (node->image->held(granule)) {
      case Held::data:
        return node->image->read(granule);
      case Held::zero:
        return 0;
      case Held::nothing:
        break;
    }
  }
  return 0;
}

void BlockGraph::mark(Node& node, std::uint64_t granule) {
  for (Bitmap& bitmap : node.bitmaps)
    if (bitmap.recording && !bitmap.inconsistent)
      bitmap.bits[granule] = true;
}

void BlockGraph::grow(Node& node) {
  if (node.file->write_threshold == 0 || node.image->allocated() <= node.file->write_threshold)
    return;
  node.file->grown_beyond = node.image->allocated() - node.file->write_threshold;
  node.file->write_threshold = 0;  // it is told once
}

/// Clusters are allocated whole: their other granules get what is read below.
void BlockGraph::fill_cluster(Node& node, std::uint64_t granule) {
  Image& image = *node.image;
  const std::uint64_t cluster = image.cluster();
  if (cluster == 1 || image.held(granule) != Held::nothing)
    return;
  const std::uint64_t first = granule & ~(cluster - 1);
  const std::uint64_t end = std::min(first + cluster, image.granules());
  std::vector<WriteNumber> below(end - first);
  for (std::uint64_t each = first; each < end; ++each)
    below[each - first] = node.backing == nullptr ? 0 : read(*node.backing, each);
  for (std::uint64_t each = first; each < end; ++each)
    if (each != granule)
      image.write(each, below[each - first]);
}

void BlockGraph::write(Node& node, std::uint64_t granule, WriteNumber number) {
  fill_cluster(node, granule);
  node.image->write(granule, number);
  mark(node, granule);
  grow(node);
}

void BlockGraph::write_zero(Node& node, std::uint64_t granule) {
  fill_cluster(node, granule);
  node.image->write_zero(granule);
  mark(node, granule);
  grow(node);
}

void BlockGraph::copy(const Node& from, Node& to, std::uint64_t granule) {
  for (const Node* node = &from; node != &to && node != nullptr; node = node->backing) {
    if (granule >= node->image->granules())
      return;
    const Held held = node->image->held(granule);
    if (held == Held::data)
      write(to, granule, node->image->read(granule));
    else if (held == Held::zero)
      write_zero(to, granule);
    else
      continue;
    return;
  }
}

void BlockGraph::flush(Node& node) {
  or_refuse([&] { node.image->flush(); });
}

std::vector<Node*> BlockGraph::users_of(const Node& node) const {
  std::vector<Node*> users;
  for (const auto& each : nodes_)
    if (each->backing == &node || each->file == &node)
      users.push_back(each.get());
  return users;
}

bool BlockGraph::in_use(const Node& node) const {
  if (!node.job.empty() || !users_of(node).empty())
    return true;
  for (const Bitmap& bitmap : node.bitmaps)
    if (bitmap.busy())
      return true;
  return std::any_of(devices_.begin(), devices_.end(),
                     [&](const Device& device) { return device.root == &node; });
}

std::function<void()> BlockGraph::snapshot(Node& node, Node& overlay) {
  if (overlay.backing != nullptr)
    refuse("The overlay already has a backing image");
  if (in_use(overlay))
    refuse("The overlay is already in use");
  if (!node.job.empty())
    refuse("Node '{}' is busy: node is used as backing hd of '{}'", node.name, node.job);
  if (&node == &overlay)
    refuse("Making '{0}' a backing child of '{0}' would create a cycle", node.name);
  flush(node);
  const bool was_read_only = node.read_only;
  set_read_only(node, true);
  replace(node, overlay, &overlay);
  overlay.backing = &node;
  return [this, &node, &overlay, was_read_only] {
    overlay.backing = nullptr;
    replace(overlay, node, nullptr);
    set_read_only(node, was_read_only);
  };
}

void BlockGraph::replace(Node& from, Node& to, const Node* except) {
  for (const auto& node : nodes_)
    if (node->backing == &from && node.get() != except)
      node->backing = &to;
  for (Device& device : devices_)
    if (device.root == &from)
      device.root = &to;
}

void BlockGraph::set_read_only(Node& node, bool read_only) {
  if (node.read_only == read_only)
    return;
  if (!read_only && !host_->lock_for_writing(node.path, true))
    refuse("Failed to get \"write\" lock");
  if (read_only) {
    flush(node);
    store_bitmaps(node, false);
    host_->lock_for_writing(node.path, false);
  } else {
    store_bitmaps(node, true);
  }
  node.read_only = read_only;
  node.file->read_only = read_only;
}

void BlockGraph::load_bitmaps(Node& node) {
  for (const StoredBitmap& stored : node.image->bitmaps())
    node.bitmaps.push_back({.name = stored.name,
                            .persistent = true,
                            .recording = stored.recording && !stored.in_use,
                            .inconsistent = stored.in_use,
                            .users = 0,
                            .bits = stored.bits});
}

void BlockGraph::store_bitmaps(Node& node, bool in_use) {
  std::vector<StoredBitmap> stored;
  for (const Bitmap& bitmap : node.bitmaps)
    if (bitmap.persistent)
      stored.push_back({.name = bitmap.name,
                        .recording = bitmap.recording,
                        .in_use = in_use || bitmap.inconsistent,
                        .bits = bitmap.bits});
  if (node.driver == "qcow2")
    or_refuse([&] { node.image->set_bitmaps(std::move(stored)); });
}

void BlockGraph::remove(const std::string& name) {
  Node* node = find(name);
  if (node == nullptr)
    refuse("Failed to find node with node-name='{}'", name);
  if (!node->by_user)
    refuse("Node {} is not owned by the monitor", name);
  if (in_use(*node))
    refuse("Node {} is in use", name);
  node->by_user = false;
  collect();
}

void BlockGraph::collect() {
  bool removed = true;
  while (removed) {
    removed = false;
    for (auto it = nodes_.begin(); it != nodes_.end(); ++it) {
      Node& node = **it;
      if (node.by_user || in_use(node))
        continue;
      if (node.is_format() && !node.read_only)
        set_read_only(node, true);
      nodes_.erase(it);
      removed = true;
      break;
    }
  }
}

void BlockGraph::die() {
  for (const auto& node : nodes_)
    if (node->is_format() && !node->read_only)
      host_->lock_for_writing(node->path, false);
  nodes_.clear();
  devices_.clear();
}

void BlockGraph::shut_down() {
  for (const auto& node : nodes_)
    if (node->is_format() && !node->read_only)
      set_read_only(*node, true);
  nodes_.clear();
  devices_.clear();
}

bool BlockGraph::is_below(const Node& node, const Node& top) const {
  for (const Node* each = top.backing; each != nullptr; each = each->backing)
    if (each == &node)
      return true;
  return false;
}

namespace {

/// QEMU calls an image by all its options where its header does not lead to what is below it.
std::string file_name_of(const Node& node) {
  const auto named = node.image->backing();
  const bool as_named = named ? node.backing != nullptr && node.backing->path == named->path
                              : node.backing == nullptr;
  if (node.driver != "qcow2" || as_named)
    return node.path;
  namespace json = boost::json;
  const auto options = [](const Node& of) {
    return json::object{{"driver", of.driver},
                        {"file", {{"driver", "file"}, {"filename", of.path}}}};
  };
  json::object all = options(node);
  if (node.backing == nullptr)
    all["backing"] = nullptr;
  else
    all["backing"] = options(*node.backing);
  return "json:" + json::serialize(all);
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
  info.file = node.path;
  info.read_only = node.read_only;
  info.write_threshold = node.write_threshold;
  info.cache = qapi::NodeInfo::Cache{.direct = node.direct};
  info.detect_zeroes = "off";
  if (!node.is_format()) {
    info.image.filename = node.path;
    info.image.format = node.driver;
    for (const Node* user : graph.users_of(node)) {
      info.image.virtual_size = user->image->allocated();
      info.image.actual_size = user->image->allocated();
    }
    return info;
  }
  info.image = image_info(node, !flat);
  for (const Node* each = node.backing; each != nullptr; each = each->backing)
    ++info.backing_depth;
  const std::uint64_t granule = node.image->granule_size();
  if (!node.bitmaps.empty())
    info.bitmaps.emplace();
  for (const Bitmap& bitmap : node.bitmaps) {
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
