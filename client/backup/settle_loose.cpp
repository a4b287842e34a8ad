#include "client/backup/settle.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "client/backup/overlay_files.hpp"

// Overlays that no disk runs on.
namespace nbdelta::client::backup {
namespace {

/// Whether a disk runs on a later overlay than this one: that it is not between that and the base
/// any more says that it has been committed.
bool was_below(const SessionId& overlay, const std::vector<StackedOverlay>& stack) {
  return std::any_of(stack.begin(), stack.end(), [&](const StackedOverlay& each) {
    return each.session.chain == overlay.chain && each.session.number > overlay.number;
  });
}

/// The file of one of our overlays: QEMU calls one that was never in use by all its options.
std::string file_of(const qapi::NodeInfo& overlay, const std::vector<qapi::NodeInfo>& nodes) {
  for (const qapi::NodeInfo& node : nodes)
    if (node.node_name == *overlay.node_name + "-f")
      return node.image.filename;
  return path_of(overlay.image);
}

}  // namespace

/// Whether an overlay that no disk runs on holds nothing that the base has not.
bool Settler::is_expendable(const std::string& local, const std::optional<Journal>& journal) {
  Files& files = environment_->files();
  if (is_committed(files, local))
    return true;
  if (journal && journal->phase == phase::kPrepare)
    for (const JournalDisk& disk : journal->disks)
      if (disk.overlay_local == local && is_half_made(files, local))
        return true;
  return files.overlay_is_empty(local);
}

/// Whether an earlier session's overlay was committed into what lies below it by a session that got
/// as far as that: then a disk runs on its base, or on later overlays above that.
bool Settler::was_committed(const std::string& local, const std::string& base,
                            const Inventory& inventory, const std::optional<Journal>& journal) {
  const auto session = session_of(base_name(local));
  if (!journal || journal->phase == phase::kPrepare || !session)
    return false;
  for (const JournalDisk& disk : journal->disks)
    if (disk.overlay_local == local)
      return false;
  return std::any_of(inventory.disks.begin(), inventory.disks.end(), [&](const GuestDisk& disk) {
    return disk.base_local == base &&
           std::all_of(disk.overlays.begin(), disk.overlays.end(), [&](const auto& overlay) {
             return overlay.session.chain == session->chain &&
                    overlay.session.number > session->number;
           });
  });
}

/// Takes our overlays' nodes away that no disk runs on; returns their files, and what these lie
/// over.
asio::awaitable<std::map<std::string, std::string>> Settler::release_nodes(Inventory inventory) {
  std::set<std::string> stacked;
  for (const GuestDisk& disk : inventory.disks)
    for (const StackedOverlay& overlay : disk.overlays)
      stacked.insert(overlay.node_name);
  Files& files = environment_->files();
  const auto to_local = [&](const std::string& path) {
    return files.canonical(paths_->to_local(path));
  };
  std::map<std::string, std::string> released;
  const qapi::QueryNamedBlockNodes query_named_block_nodes{.flat = true};
  const auto nodes = co_await qmp_->call(query_named_block_nodes);
  for (const qapi::NodeInfo& node : nodes) {
    if (!node.node_name || node.node_name->starts_with('#') || node.driver != "qcow2" ||
        stacked.count(*node.node_name))
      continue;
    // A guest that was started on an overlay has a name of its own for it.
    const std::string local = to_local(file_of(node, nodes));
    auto session = session_of(*node.node_name);
    if (!session)
      session = session_of(base_name(local));
    if (!session || !ours(*session))
      continue;
    const bool deleted = co_await delete_node(*node.node_name);
    if (deleted)
      released[local] = to_local(node.image.full_backing_filename.value_or(""));
  }
  co_return released;
}

/// Overlays that no disk runs on: they were never in use, or have been committed, or their disk was
/// taken away from the guest with all that it wrote, or QEMU was started without them.
asio::awaitable<void> Settler::remove_loose(std::optional<Journal>& journal) {
  struct Loose {
    std::string base;
    std::string disk;
    bool was_below = false;
  };
  Files& files = environment_->files();
  const Inventory inventory = co_await query_inventory(*qmp_, *environment_, *paths_);
  std::map<std::string, Loose> loose;
  const auto released = co_await release_nodes(inventory);
  for (const auto& [local, base] : released)
    loose[local] = {.base = base, .disk = {}};
  if (journal)
    for (const JournalDisk& disk : journal->disks)
      loose[disk.overlay_local] = {.base = disk.base_local, .disk = disk.name};
  std::set<std::string> bases;
  for (const GuestDisk& disk : inventory.disks) {
    bases.insert(disk.base_local);
    for (const std::string& local : overlays_beside(files, disk.base_local)) {
      const auto session = session_of(base_name(local));
      // A copy that somebody made has another name.
      const bool of_disk = session && base_name(local) == overlay_file_name(*session, disk.name) &&
                           (is_committed(files, local) || files.backing_of(local));
      if (of_disk && ours(*session))
        loose[local] = {.base = disk.base_local,
                        .disk = disk.name,
                        .was_below = was_below(*session, disk.overlays)};
    }
  }
  // Whatever QEMU has open is in use, also by a graph that is not understood here.
  const qapi::QueryNamedBlockNodes query_named_block_nodes{.flat = true};
  const auto nodes = co_await qmp_->call(query_named_block_nodes);
  for (const qapi::NodeInfo& node : nodes)
    loose.erase(files.canonical(paths_->to_local(node.file)));
  // The newest first: an overlay never lies over one that has gone.
  std::vector<std::pair<std::string, Loose>> newest_first(loose.begin(), loose.end());
  std::stable_sort(newest_first.begin(), newest_first.end(), [](const auto& a, const auto& b) {
    const auto number = [](const std::string& local) {
      const auto session = session_of(base_name(local));
      return session ? session->number : 0;
    };
    return number(a.first) > number(b.first);
  });
  for (const auto& [local, what] : newest_first) {
    if (local.empty() || (!files.exists(local) && !is_committed(files, local)))
      continue;
    const bool expendable = what.was_below || is_expendable(local, journal) ||
                            was_committed(local, what.base, inventory, journal);
    if (expendable)
      drop_overlay(local, what.base);
    else if (bases.count(what.base))
      settled_.problems.push_back(fmt::format(
          "{}: QEMU was started without its overlay {}, which holds what the guest wrote before; "
          "it is left where it is. Shut the guest down at once and run 'nbdelta recover --offline "
          "{}'",
          what.disk, local, what.base));
    else
      settled_.problems.push_back(fmt::format(
          "{}: holds what the guest wrote, and no disk runs on it; it is left. 'nbdelta recover "
          "--offline {}' commits it when nobody uses that image",
          local, what.base));
  }
}

}  // namespace nbdelta::client::backup
