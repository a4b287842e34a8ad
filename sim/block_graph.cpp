#include "sim/block_graph.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace nbdelta::sim {

bool is_well_formed(std::string_view id) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !id.empty() && is_letter(id[0]) && std::all_of(id.begin(), id.end(), [&](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

void check_node_name(std::string_view name) {
  constexpr std::size_t kLongest = 31;
  if (!is_well_formed(name))
    refuse("Invalid node-name: '{}'", name);
  if (name.size() > kLongest)
    refuse("Node name too long");
}

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

std::shared_ptr<Image> BlockGraph::open_image(const NodeOptions& options) {
  try {
    return host_->open(options.path, options.driver);
  } catch (const Error& error) {
    refuse("{}", error.what());
  }
}

/// Nodes and drives share their names.
void BlockGraph::refuse_name_in_use(const std::string& name) const {
  if (name.empty())
    return;
  for (const Device& device : devices_)
    if (device.name == name && !device.unplugged)
      refuse("node-name={} is conflicting with a device id", name);
  if (find(name) != nullptr)
    refuse("Duplicate nodes with node-name='{}'", name);
}

/// In QEMU's order: first the file, then what is in it.
Node& BlockGraph::open(const NodeOptions& options) {
  refuse_name_in_use(options.file_name);
  if (!options.file_name.empty())
    check_node_name(options.file_name);
  std::shared_ptr<Image> image = open_image(options);
  refuse_name_in_use(options.name);
  if (!options.name.empty() && options.name == options.file_name)
    refuse("Duplicate nodes with node-name='{}'", options.name);
  if (!options.name.empty())
    check_node_name(options.name);
  if (options.read_only && host_->written_by_others(options.path))
    refuse("Failed to get shared \"write\" lock");
  if (!options.read_only && !host_->lock_for_writing(options.path, true))
    refuse("Failed to get \"write\" lock");

  auto file = std::make_unique<Node>();
  file->name = options.file_name.empty() ? make_up_name() : options.file_name;
  file->driver = "file";
  file->path = options.path;
  file->read_only = options.read_only;
  file->direct = options.direct || options.file_direct;
  auto node = std::make_unique<Node>();
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
    mark_bitmaps_in_use(*node);
  nodes_.push_back(std::move(file));
  node->name = options.name.empty() ? make_up_name() : options.name;
  nodes_.push_back(std::move(node));
  Node& opened = *nodes_.back();
  if (!options.no_backing)
    open_backing(opened);
  return opened;
}

Node& BlockGraph::open_null(const std::string& name) {
  refuse_name_in_use(name);
  check_node_name(name);
  auto node = std::make_unique<Node>();
  node->name = name;
  node->driver = "null-co";
  node->path = "null-co://";
  node->read_only = false;
  node->by_user = true;
  nodes_.push_back(std::move(node));
  return *nodes_.back();
}

void BlockGraph::open_backing(Node& node) {
  const auto backing = node.image->backing();
  if (!backing)
    return;
  NodeOptions options;
  options.driver = backing->format;
  options.path = backing->path;
  options.read_only = true;
  options.direct = node.direct;
  try {
    node.backing = &open(options);
  } catch (const BlockError& error) {
    const std::string why = error.what();
    node.by_user = false;
    collect();
    refuse("Could not open backing file: {}", why);
  }
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
  Node& file = *node.file;
  const std::uint64_t size = node.image->allocated();
  if (file.write_threshold == 0 || size <= file.write_threshold)
    return;
  file.grown = {.threshold = file.write_threshold, .beyond = size - file.write_threshold};
  file.write_threshold = 0;  // it is told once
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
  if (node.is_format())
    or_refuse([&] { node.image->flush(); });
}

std::vector<Node*> BlockGraph::users_of(const Node& node) const {
  std::vector<Node*> users;
  for (const auto& each : nodes_)
    if (each->backing == &node || each->file == &node)
      users.push_back(each.get());
  return users;
}

const std::string& BlockGraph::shown_name(const Node& node) const {
  for (const Device& device : devices_)
    if (device.root == &node && !device.name.empty() && !node.filtered)
      return device.name;
  return node.name;
}

bool BlockGraph::has_blk(const Node& node) const {
  const auto is_root = [&](const Device& device) { return device.root == &node && !node.filtered; };
  return node.has_job_blk || std::any_of(devices_.begin(), devices_.end(), is_root) ||
         std::any_of(holds_.begin(), holds_.end(),
                     [&](Node* const* user) { return *user == &node; });
}

bool BlockGraph::in_use(const Node& node) const {
  if (!node.job.empty() || !users_of(node).empty() || has_blk(node))
    return true;
  return std::any_of(node.bitmaps.begin(), node.bitmaps.end(),
                     [](const Bitmap& bitmap) { return bitmap.busy(); });
}

void BlockGraph::refuse_if_blocked(const Node& node) const {
  if (!node.job.empty())
    refuse("Node '{}' is busy: block device is in use by block job: commit", shown_name(node));
  for (const Node* user : users_of(node))
    if (user->backing == &node)
      refuse("Node '{}' is busy: node is used as backing hd of '{}'", shown_name(node), user->name);
}

void BlockGraph::refuse_if_read_by_others(const Node& node) const {
  if (host_->read_by_others(node.path))
    refuse("Failed to get shared \"consistent read\" lock");
}

bool BlockGraph::is_read(const Node& node) const {
  const auto users = users_of(node);
  return has_blk(node) || std::any_of(users.begin(), users.end(), [&](const Node* user) {
           return user->file == &node || is_read(*user);
         });
}

void BlockGraph::refuse_cycle(const Node& backing, const Node& node) const {
  if (&backing == &node || is_below(node, backing))
    refuse("Making '{}' a backing child of '{}' would create a cycle", backing.name, node.name);
}

void BlockGraph::grow_to(Node& node, const Node& other) {
  const std::uint64_t granules = other.image->granules();
  if (node.image->granules() >= granules)
    return;
  or_refuse([&] { node.image->resize(granules); });
  for (Bitmap& bitmap : node.bitmaps)
    bitmap.bits.resize(granules);
}

Change BlockGraph::snapshot(Node& node, const std::string& overlay_name) {
  refuse_if_blocked(node);
  Node& overlay = lookup(overlay_name);
  if (is_read(overlay))
    refuse("The overlay is already in use");
  if (overlay.backing != nullptr)
    refuse("The overlay already has a backing image");
  if (overlay.driver != "qcow2")
    refuse("The overlay does not support backing images");
  refuse_cycle(node, overlay);
  if (overlay.read_only && is_read(node))
    refuse("Block node is read-only");
  flush(node);
  replace(node, overlay, &overlay);
  overlay.backing = &node;
  return {.settle = [this, &node] { try_read_only(node); },
          .undo =
              [this, &node, &overlay] {
                overlay.backing = nullptr;
                replace(overlay, node, nullptr);
              }};
}

void BlockGraph::replace(Node& from, Node& to, const Node* except) {
  for (const auto& node : nodes_)
    if (node->backing == &from && node.get() != except)
      node->backing = &to;
  for (Device& device : devices_)
    if (device.root == &from)
      device.root = &to;
  for (Node** user : holds_)
    if (*user == &from)
      *user = &to;
}

void BlockGraph::set_read_only(Node& node, bool read_only) {
  if (node.read_only == read_only)
    return;
  if (!read_only && !host_->lock_for_writing(node.path, true))
    refuse("Failed to get \"write\" lock");
  if (read_only) {
    flush(node);
    store_bitmaps(node);
    host_->lock_for_writing(node.path, false);
  } else {
    mark_bitmaps_in_use(node);
  }
  node.read_only = read_only;
  node.file->read_only = read_only;
}

void BlockGraph::try_read_only(Node& node) {
  try {
    set_read_only(node, true);
  } catch (const BlockError&) {
    // bdrv_reopen_set_read_only(..., NULL): the node stays writable
  }
}

void BlockGraph::load_bitmaps(Node& node) {
  for (const StoredBitmap& stored : node.image->bitmaps())
    node.bitmaps.push_back(
        {.name = stored.name,
         .persistent = true,
         .recording = stored.recording && !stored.in_use,
         .inconsistent = stored.in_use,
         .users = 0,
         .bits = stored.in_use ? std::vector<bool>(node.image->granules()) : stored.bits});
}

/// Those that the image has stay where they are in its directory; the newest of the others go first
/// (QEMU block/qcow2-bitmap.c).
void BlockGraph::store_bitmaps(Node& node) {
  if (node.driver != "qcow2")
    return;
  std::vector<StoredBitmap> stored = node.image->bitmaps();
  for (auto bitmap = node.bitmaps.rbegin(); bitmap != node.bitmaps.rend(); ++bitmap) {
    if (!bitmap->persistent || bitmap->inconsistent)
      continue;
    auto place = std::find_if(stored.begin(), stored.end(),
                              [&](const StoredBitmap& each) { return each.name == bitmap->name; });
    if (place == stored.end())
      place = stored.insert(stored.end(), StoredBitmap());
    *place = {.name = bitmap->name,
              .recording = bitmap->recording,
              .in_use = false,
              .bits = bitmap->bits};
  }
  or_refuse([&] { node.image->set_bitmaps(std::move(stored)); });
}

void BlockGraph::set_backing(Node& node, const BackingFile& backing) {
  or_refuse([&] { node.image->set_backing(backing); });
}

void BlockGraph::forget_stored(Node& node, const std::string& bitmap) {
  std::vector<StoredBitmap> stored = node.image->bitmaps();
  std::erase_if(stored, [&](const StoredBitmap& each) { return each.name == bitmap; });
  or_refuse([&] { node.image->set_bitmaps(std::move(stored)); });
}

void BlockGraph::mark_bitmaps_in_use(Node& node) {
  if (node.driver != "qcow2")
    return;
  std::vector<StoredBitmap> stored = node.image->bitmaps();
  for (StoredBitmap& each : stored)
    each.in_use = true;
  or_refuse([&] { node.image->set_bitmaps(std::move(stored)); });
}

void BlockGraph::remove(const std::string& name) {
  Node* node = find(name);
  if (node == nullptr)
    refuse("Failed to find node with node-name='{}'", name);
  if (has_blk(*node))
    refuse("Node {} is in use", name);
  refuse_if_blocked(*node);
  if (!node->by_user)
    refuse("Node {} is not owned by the monitor", name);
  if (in_use(*node))
    refuse("Block device {} is in use", name);
  node->by_user = false;
  collect();
}

void BlockGraph::unplug(Device& device) {
  flush(*device.root);
  device.root = nullptr;
  device.unplugged = true;
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
  holds_.clear();
  nodes_.clear();
  devices_.clear();
}

void BlockGraph::shut_down() {
  for (const auto& node : nodes_)
    if (node->is_format() && !node->read_only)
      set_read_only(*node, true);
  holds_.clear();
  nodes_.clear();
  devices_.clear();
}

bool BlockGraph::is_below(const Node& node, const Node& top) const {
  for (const Node* each = top.backing; each != nullptr; each = each->backing)
    if (each == &node)
      return true;
  return false;
}

}  // namespace nbdelta::sim
