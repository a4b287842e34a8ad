#include "client/backup/settle.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "client/backup/breaks.hpp"
#include "client/backup/overlay_files.hpp"

// Overlays that no disk runs on.
namespace nbdelta::client::backup {
namespace {

/// The file of one of our overlays: QEMU calls one that was never in use by all its options.
std::string file_of(const qapi::NodeInfo& overlay, const std::vector<qapi::NodeInfo>& nodes) {
  for (const qapi::NodeInfo& node : nodes)
    if (node.node_name == *overlay.node_name + "-f")
      return node.image.filename;
  return path_of(overlay.image);
}

/// Empty where nobody has the overlay open; otherwise why that is thought.
std::string other_user_of(Files& files, const std::string& overlay) {
  if (!files.exists(overlay))
    return {};
  try {
    files.check_unused(overlay);
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

/// Whether an overlay that no disk runs on holds nothing that the base has not.
bool Settler::is_expendable(const std::string& local, const std::optional<Journal>& journal) {
  Files& files = environment_->files();
  if (is_committed(files, local))
    return true;
  if (broken("journal-trusted") && journal && journal->phase == phase::kWindow)
    return true;
  if (journal && journal->phase == phase::kPrepare)
    for (const JournalDisk& disk : journal->disks)
      if (disk.overlay_local == local && is_half_made(files, local))
        return true;
  return files.overlay_is_empty(local);
}

/// Whether a disk that was above it shows that it has been committed: by running on later overlays
/// of ours without it; or on its base, in the QEMU that we have added the overlay to, where only
/// the end of a commit (somebody else's, too) takes a guest.
bool Settler::was_committed(const std::string& local, const Loose& overlay,
                            const Inventory& inventory) const {
  const auto session = session_of(base_name(local));
  const auto is_later = [&](const StackedOverlay& each) {
    return session && each.session.chain == session->chain && each.session.number > session->number;
  };
  return std::any_of(inventory.disks.begin(), inventory.disks.end(), [&](const GuestDisk& disk) {
    if (disk.base_local != overlay.base)
      return false;
    if (disk.overlays.empty())
      return overlay.added_by_us;
    return std::all_of(disk.overlays.begin(), disk.overlays.end(), is_later);
  });
}

/// Takes our overlays' nodes away that no disk runs on.
asio::awaitable<std::map<std::string, Settler::Loose>> Settler::release_nodes(Inventory inventory) {
  std::set<std::string> stacked;
  for (const GuestDisk& disk : inventory.disks)
    for (const StackedOverlay& overlay : disk.overlays)
      stacked.insert(overlay.node_name);
  Files& files = environment_->files();
  const auto to_local = [&](const std::string& path) {
    return files.canonical(paths_->to_local(path));
  };
  std::map<std::string, Loose> released;
  const qapi::QueryNamedBlockNodes query_named_block_nodes{.flat = true};
  const auto nodes = co_await qmp_->call(query_named_block_nodes);
  for (const qapi::NodeInfo& node : nodes) {
    if (!node.node_name || node.node_name->starts_with('#') || node.driver != "qcow2" ||
        stacked.count(*node.node_name))
      continue;
    // A guest that was started on an overlay has a name of its own for it.
    const std::string local = to_local(file_of(node, nodes));
    auto session = session_of(*node.node_name);
    const bool added_by_us = session.has_value();
    if (!session)
      session = session_of(base_name(local));
    if (!session || !ours(*session))
      continue;
    const bool deleted = co_await delete_node(*node.node_name);
    if (deleted)
      released[local] = {.base = to_local(node.image.full_backing_filename.value_or("")),
                         .disk = {},
                         .added_by_us = added_by_us};
  }
  co_return released;
}

/// Overlays that no disk runs on: they were never in use, or have been committed, or their disk was
/// taken away from the guest with all that it wrote, or QEMU was started without them.
asio::awaitable<void> Settler::remove_loose(std::optional<Journal>& journal) {
  Files& files = environment_->files();
  const Inventory inventory = co_await query_inventory(*qmp_, *environment_, *paths_);
  std::map<std::string, Loose> loose = co_await release_nodes(inventory);
  const auto add = [&](const std::string& local, const std::string& base, const std::string& disk) {
    loose[local].base = base;
    loose[local].disk = disk;
  };
  const auto add_beside = [&](const std::string& base, const std::string& disk) {
    for (const std::string& local : overlays_beside(files, base)) {
      const auto session = session_of(base_name(local));
      // A copy that somebody made has another name.
      const bool of_disk = session && base_name(local) == overlay_file_name(*session, disk) &&
                           (is_committed(files, local) || files.backing_of(local));
      if (of_disk && ours(*session))
        add(local, base, disk);
    }
  };
  if (journal)
    for (const JournalDisk& disk : journal->disks) {
      add(disk.overlay_local, disk.base_local, disk.name);
      add_beside(disk.base_local, disk.name);  // it may have been unplugged
    }
  std::set<std::string> bases;
  for (const GuestDisk& disk : inventory.disks) {
    bases.insert(disk.base_local);
    add_beside(disk.base_local, disk.name);
  }
  std::set<std::string> overlays;
  for (const auto& [local, what] : loose)
    overlays.insert(local);
  for (const GuestDisk& disk : inventory.disks)
    for (const StackedOverlay& overlay : disk.overlays)
      overlays.insert(overlay.local);
  // Whatever QEMU has open is in use, also by a graph that is not understood here.
  const qapi::QueryNamedBlockNodes query_named_block_nodes{.flat = true};
  const auto nodes = co_await qmp_->call(query_named_block_nodes);
  for (const qapi::NodeInfo& node : nodes)
    if (!broken("journal-trusted"))
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
    const auto names_it = [&, &below = local](const std::string& overlay) {
      return files.exists(overlay) && files.backing_of(overlay) == below;
    };
    if (!broken("stale-header") && std::any_of(overlays.begin(), overlays.end(), names_it))
      continue;  // that one is left, and cannot be opened without this one
    if (const std::string user = other_user_of(files, local); !user.empty())
      settled_.problems.push_back(fmt::format(
          "{}: somebody else has it open ({}), a copy of this guest perhaps; it is left", local,
          user));
    else if (is_expendable(local, journal) || was_committed(local, what, inventory)) {
      mark_committed_before(files, local, overlays);
      drop_overlay(local, what.base);
    } else if (bases.count(what.base)) {
      unmark_committing(files, local);  // the guest has written to the base meanwhile
      settled_.problems.push_back(fmt::format(
          "{}: QEMU was started without its overlay {}, which holds what the guest wrote before; "
          "it is left where it is. Shut the guest down at once and run 'nbdelta recover --offline "
          "{}'",
          what.disk, local, what.base));
    } else
      settled_.problems.push_back(fmt::format(
          "{}: holds what the guest wrote, and no disk runs on it; it is left. 'nbdelta recover "
          "--offline {}' commits it when nobody uses that image",
          local, what.base));
  }
}

}  // namespace nbdelta::client::backup
