#include "client/backup/obstacles.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "client/backup/jobs.hpp"
#include "qapi/snapshot_commands.hpp"

namespace nbdelta::client::backup {

std::string snapshots_in(const std::string& path, const std::vector<std::string>& snapshots) {
  if (snapshots.empty())
    return {};
  return fmt::format(
      "{0} holds snapshots of the guest that would go with it ({1}), so it stays as it is: delete "
      "them ('delvm NAME' in QEMU's human monitor, or 'qemu-img snapshot -d NAME {0}' with the "
      "guest shut down)",
      path, fmt::join(snapshots, ", "));
}

asio::awaitable<void> check_for_snapshots(qmp::Client& qmp, std::vector<std::string> node_names,
                                          Clock::Duration timeout) {
  const qapi::QueryNamedBlockNodes query{.flat = true};
  const auto nodes = co_await qmp.call(query, timeout);
  for (const qapi::NodeInfo& node : nodes)
    if (std::find(node_names.begin(), node_names.end(), node.node_name.value_or("")) !=
        node_names.end()) {
      const std::string why = snapshots_in(path_of(node.image), node.image.snapshot_names());
      if (!why.empty())
        fail(EBUSY, "{}", why);
    }
}

std::vector<std::string> inconsistent_bitmaps(const GuestDisk& disk, Owner owner) {
  std::vector<std::string> names;
  for (const qapi::BitmapInfo& bitmap : disk.bitmaps)
    if (bitmap.inconsistent.value_or(false) &&
        session_of(bitmap.name).has_value() == (owner == Owner::ours))
      names.push_back(bitmap.name);
  return names;
}

bool has_grown(const GuestDisk& disk) {
  return !disk.overlays.empty() && disk.size > disk.base_size;
}

std::string obstacle_in(const GuestDisk& disk) {
  const std::vector<std::string> foreign = inconsistent_bitmaps(disk, Owner::others);
  if (foreign.empty())
    return {};
  const std::string offline =
      fmt::format("'qemu-img bitmap --remove {} {}'", disk.base_path, foreign.front());
  if (has_grown(disk))
    return fmt::format(
        "{} has an inconsistent bitmap of other software ({}), and the disk was made larger: QEMU "
        "does not commit an overlay into such an image. Shut the guest down, then {} and 'nbdelta "
        "recover --offline'",
        disk.base_path, fmt::join(foreign, ", "), offline);
  if (!disk.overlays.empty())
    return {};
  return fmt::format(
      "{} has an inconsistent bitmap of other software ({}): if the disk were made larger while it "
      "runs on an overlay, that could not be committed any more. Remove it: by QMP "
      "(block-dirty-bitmap-remove, node {}), or with the guest shut down {}",
      disk.base_path, fmt::join(foreign, ", "), disk.base_node, offline);
}

asio::awaitable<void> let_base_grow(qmp::Client& qmp, GuestDisk disk) {
  if (!has_grown(disk))
    co_return;
  if (const std::string why = obstacle_in(disk); !why.empty())
    fail(EBUSY, "{}", why);
  const std::vector<std::string> ours = inconsistent_bitmaps(disk, Owner::ours);
  if (ours.empty())
    co_return;
  const bool was_read_only = co_await reopen_base(qmp, disk, image::Access::write);
  for (const std::string& name : ours) {
    const qapi::BlockDirtyBitmapRemove block_dirty_bitmap_remove{.node = disk.base_node,
                                                                 .name = name};
    co_await qmp.call(block_dirty_bitmap_remove);
  }
  if (was_read_only)
    co_await reopen_base(qmp, disk, image::Access::read);
}

}  // namespace nbdelta::client::backup
