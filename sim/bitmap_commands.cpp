#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "sim/fake_qemu.hpp"

// Dirty bitmaps, snapshots, and transactions of both.
namespace nbdelta::sim {

namespace json = qapi::json;
using namespace qapi;

void FakeQemu::add_bitmap_commands() {
  commands_.add<Transaction>([this](const Transaction& command) { return transaction(command); });
  add_action<BlockdevSnapshot>(
      [this](const BlockdevSnapshot& command) { return snapshot(command); });
  add_action<BlockDirtyBitmapAdd>(
      [this](const BlockDirtyBitmapAdd& command) { return add_bitmap(command); });
  add_action<BlockDirtyBitmapRemove>(
      [this](const BlockDirtyBitmapRemove& command) { return remove_bitmap(command); });
  add_action<BlockDirtyBitmapClear>([this](const BlockDirtyBitmapClear& command) {
    return set_bits(command.node, command.name, {});
  });
  add_action<BlockDirtyBitmapEnable>([this](const BlockDirtyBitmapEnable& command) {
    return set_recording(command.node, command.name, true);
  });
  add_action<BlockDirtyBitmapDisable>([this](const BlockDirtyBitmapDisable& command) {
    return set_recording(command.node, command.name, false);
  });
  add_action<BlockDirtyBitmapMerge>(
      [this](const BlockDirtyBitmapMerge& command) { return merge_bitmaps(command); });
}

/// A command that is an action of a transaction too.
template <TypedCommand T>
void FakeQemu::add_action(std::function<Change(const T&)> act) {
  commands_.add<T>([act](const T& command) {
    act(command).settle();
    return Nothing{};
  });
  actions_[std::string(T::kName)] = [act](const json::object& data, const std::string& path) {
    return [act, command = CommandTable::read<T>(data, path)] { return act(command); };
  };
}

/// All actions are read before the first is carried out.
Nothing FakeQemu::transaction(const Transaction& command) {
  std::vector<std::function<Change()>> actions;
  for (const TransactionAction& action : command.actions) {
    const auto found = actions_.find(action.type);
    if (found == actions_.end())
      refuse("Parameter 'type' does not accept value '{}'", action.type);
    actions.push_back(found->second(action.data, fmt::format("actions[{}].data", actions.size())));
  }
  std::vector<Change> changes;
  try {
    for (const auto& action : actions)
      changes.push_back(action());
  } catch (const BlockError&) {
    for (auto change = changes.rbegin(); change != changes.rend(); ++change)
      change->undo();
    throw;
  }
  for (const Change& change : changes)
    change.settle();
  const bool switches = std::any_of(
      command.actions.begin(), command.actions.end(),
      [](const TransactionAction& action) { return action.type == BlockdevSnapshot::kName; });
  if (switches)
    hooks_.switched();
  return {};
}

Change FakeQemu::snapshot(const BlockdevSnapshot& command) {
  return graph_.snapshot(format_node(graph_.lookup(command.node)), command.overlay);
}

Change FakeQemu::add_bitmap(const BlockDirtyBitmapAdd& command) {
  constexpr std::uint64_t kFinest = 512;      // bytes; QEMU's limit
  constexpr std::size_t kLongestName = 1023;  // BDRV_BITMAP_MAX_NAME_SIZE
  const std::uint64_t granularity = command.granularity.value_or(kFinest);
  if (command.name.empty())
    refuse("Bitmap name cannot be empty");
  Node& node = graph_.lookup(command.node);
  if (granularity < kFinest || !std::has_single_bit(granularity))
    refuse("Granularity must be power of 2 and at least {}", kFinest);
  const bool persistent = command.persistent.value_or(false);
  if (persistent && node.driver != "qcow2")
    refuse("Can't store persistent bitmaps to {}: Operation not supported",
           graph_.shown_name(node));
  if (command.name.size() > kLongestName && persistent)
    refuse(
        "Can't make bitmap '{}' persistent in '{}': Name length exceeds maximum (1023 "
        "characters)",
        command.name, graph_.shown_name(node));
  if (command.name.size() > kLongestName)
    refuse("Bitmap name too long: {}", command.name);
  if (node.find_bitmap(command.name) != nullptr)
    refuse("Bitmap already exists: {}", command.name);
  format_node(node);
  node.bitmaps.push_back({.name = command.name,
                          .persistent = persistent,
                          .recording = !command.disabled.value_or(false),
                          .inconsistent = false,
                          .users = 0,
                          .bits = std::vector<bool>(node.image->granules())});
  Change change;
  change.undo = [&node, name = command.name] {
    std::erase_if(node.bitmaps, [&](const Bitmap& bitmap) { return bitmap.name == name; });
  };
  return change;
}

Bitmap& FakeQemu::lookup_bitmap(const std::string& node_name, const std::string& name) {
  Node* node = nullptr;
  try {
    node = &graph_.lookup(node_name);
  } catch (const BlockError&) {
    refuse("Node '{}' not found", node_name);
  }
  Bitmap* bitmap = node->find_bitmap(name);
  if (bitmap == nullptr)
    refuse("Dirty bitmap '{}' not found", name);
  return *bitmap;
}

void FakeQemu::refuse_busy(const Bitmap& bitmap) {
  if (bitmap.busy())
    refuse("Bitmap '{}' is currently in use by another operation and cannot be used", bitmap.name);
}

void FakeQemu::refuse_inconsistent(const Bitmap& bitmap) {
  if (bitmap.inconsistent)
    refuse("Bitmap '{}' is inconsistent and cannot be used", bitmap.name);
}

Bitmap& FakeQemu::usable_bitmap(const std::string& node, const std::string& name) {
  Bitmap& bitmap = lookup_bitmap(node, name);
  refuse_busy(bitmap);
  refuse_inconsistent(bitmap);
  return bitmap;
}

/// Checks in QEMU's order (bdrv_dirty_bitmap_check()).
Bitmap& FakeQemu::writable_bitmap(const std::string& node, const std::string& name) {
  Bitmap& bitmap = lookup_bitmap(node, name);
  refuse_busy(bitmap);
  refuse_read_only(node, bitmap);
  refuse_inconsistent(bitmap);
  return bitmap;
}

/// One that was added since the node is read-only is in memory alone.
void FakeQemu::refuse_read_only(const std::string& node_name, const Bitmap& bitmap) {
  const Node& node = graph_.lookup(node_name);
  if (!bitmap.persistent || !node.read_only)
    return;
  const std::vector<StoredBitmap>& stored = node.image->bitmaps();
  if (std::any_of(stored.begin(), stored.end(),
                  [&](const StoredBitmap& each) { return each.name == bitmap.name; }))
    refuse("Bitmap '{}' is readonly and cannot be modified", bitmap.name);
}

Change FakeQemu::set_recording(const std::string& node, const std::string& name, bool recording) {
  Bitmap& bitmap = usable_bitmap(node, name);
  const bool before = std::exchange(bitmap.recording, recording);
  Change change;
  change.undo = [this, node, name, before] {
    graph_.lookup(node).find_bitmap(name)->recording = before;
  };
  return change;
}

/// It is gone from the image at once, whatever comes after it; from QEMU when all has gone well.
Change FakeQemu::remove_bitmap(const BlockDirtyBitmapRemove& command) {
  Bitmap& bitmap = lookup_bitmap(command.node, command.name);
  refuse_busy(bitmap);
  refuse_read_only(command.node, bitmap);
  Node& node = graph_.lookup(command.node);
  if (bitmap.persistent && !node.read_only)
    graph_.forget_stored(node, bitmap.name);
  ++bitmap.users;
  Change change;
  change.undo = [&node, name = command.name] { --node.find_bitmap(name)->users; };
  change.settle = [&node, name = command.name] {
    std::erase_if(node.bitmaps, [&](const Bitmap& each) { return each.name == name; });
  };
  return change;
}

/// `bits`: empty for none.
Change FakeQemu::set_bits(const std::string& node, const std::string& name,
                          std::vector<bool> bits) {
  Bitmap& bitmap = writable_bitmap(node, name);
  bits.resize(bitmap.bits.size());
  std::swap(bitmap.bits, bits);
  Change change;
  change.undo = [this, node, name, before = std::move(bits)] {
    graph_.lookup(node).find_bitmap(name)->bits = before;
  };
  return change;
}

/// Checks in QEMU's order: of each source whether it is there, then the target, then the source.
Change FakeQemu::merge_bitmaps(const BlockDirtyBitmapMerge& command) {
  std::vector<bool> merged = lookup_bitmap(command.node, command.target).bits;
  for (const std::string& name : command.bitmaps) {
    lookup_bitmap(command.node, name);
    writable_bitmap(command.node, command.target);
    const Bitmap& source = usable_bitmap(command.node, name);
    for (std::size_t i = 0; i < merged.size(); ++i)
      if (source.bits[i])
        merged[i] = true;
  }
  return set_bits(command.node, command.target, std::move(merged));
}

}  // namespace nbdelta::sim
