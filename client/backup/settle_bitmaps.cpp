#include "client/backup/settle.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "client/backup/bitmap_parts.hpp"
#include "client/backup/breaks.hpp"
#include "qapi/snapshot_commands.hpp"

// What becomes of a disk's bitmaps.
namespace nbdelta::client::backup {

/// The bitmap of a session whose restore point is durable, where the switch could not make it: all
/// that it misses is in the overlay above the base, and will be in it when that is committed.
asio::awaitable<void> Settler::ensure_bitmap(GuestDisk disk, SessionId id) {
  const std::string name = bitmap_name(id);
  if (!is_durable(id))
    co_return;
  for (const qapi::BitmapInfo& bitmap : disk.bitmaps)
    if (bitmap.name == name)
      co_return;
  const qapi::BlockDirtyBitmapAdd block_dirty_bitmap_add{.node = disk.base_node,
                                                         .name = name,
                                                         .granularity = std::nullopt,
                                                         .persistent = disk.can_keep_bitmaps,
                                                         .disabled = std::nullopt};
  co_await qmp_->call(block_dirty_bitmap_add);
}

/// The guest runs on the base, so its bitmaps can be changed.
asio::awaitable<void> Settler::settle_bitmaps(GuestDisk disk) {
  const qapi::QueryNamedBlockNodes query_named_block_nodes{.flat = true};
  const auto nodes = co_await qmp_->call(query_named_block_nodes);
  std::vector<qapi::BitmapInfo> bitmaps;  // of ours, lowest number first
  for (const qapi::NodeInfo& node : nodes)
    if (node.node_name == disk.base_node && node.bitmaps)
      for (const qapi::BitmapInfo& bitmap : *node.bitmaps) {
        const auto session = session_of(bitmap.name);
        if (session && ours(*session))
          bitmaps.push_back(bitmap);
      }
  std::sort(bitmaps.begin(), bitmaps.end(), [](const auto& a, const auto& b) {
    const auto key = [](const qapi::BitmapInfo& bitmap) {
      const auto session = session_of(bitmap.name);
      return std::tuple(session->chain, session->number, bitmap.name);
    };
    return key(a) < key(b);
  });
  if (repository_ == nullptr) {
    co_await merge_all(disk, std::move(bitmaps));
    co_return;
  }

  auto wanted = std::find_if(bitmaps.begin(), bitmaps.end(), [&](const qapi::BitmapInfo& bitmap) {
    const auto* entry = latest_ ? latest_->find(disk.name) : nullptr;
    return entry != nullptr && entry->tracking == repository::kByBitmap &&
           bitmap.name == bitmap_name({latest_->chain, latest_->number});
  });
  if (wanted != bitmaps.end() && !wanted->inconsistent.value_or(false)) {
    if (is_complete(*wanted, bitmaps)) {
      co_await put_back(disk, *wanted, later_parts(*wanted, bitmaps));
    } else {
      settled_.done.push_back(fmt::format(
          "{}: removed the bitmap {}: it was disabled and has a gap; the next backup is "
          "a full",
          disk.name, wanted->name));
      settled_.gaps.push_back(disk.name);
      wanted = bitmaps.end();
    }
  }
  for (const qapi::BitmapInfo& bitmap : bitmaps) {
    if (wanted != bitmaps.end() && bitmap.name == wanted->name)
      continue;
    const qapi::BlockDirtyBitmapRemove block_dirty_bitmap_remove{.node = disk.base_node,
                                                                 .name = bitmap.name};
    co_await qmp_->call(block_dirty_bitmap_remove);
  }
}

/// Adds what later bitmaps have, and lets the bitmap record again.
asio::awaitable<void> Settler::put_back(GuestDisk disk, qapi::BitmapInfo bitmap,
                                        std::vector<std::string> later) {
  if (later.empty())
    co_return;
  // The guest writes meanwhile: what comes after the enabling is in both, and what was before is
  // merged.
  using qapi::TransactionAction;
  qapi::Transaction transaction;
  if (!bitmap.recording)
    transaction.actions.push_back(TransactionAction::of(
        qapi::BlockDirtyBitmapEnable{.node = disk.base_node, .name = bitmap.name}));
  if (!broken("dirty-bits-dropped"))
    transaction.actions.push_back(TransactionAction::of(qapi::BlockDirtyBitmapMerge{
        .node = disk.base_node, .target = bitmap.name, .bitmaps = later}));
  co_await qmp_->call(transaction);
  settled_.done.push_back(fmt::format("{}: put what has changed since back into the bitmap {}",
                                      disk.name, bitmap.name));
}

/// Which restore points are durable is not known: each bitmap gets what the next ones have, and
/// records, so that any of them can be built on; unless a session between is missing, which may
/// have been one without a bitmap.
asio::awaitable<void> Settler::merge_all(GuestDisk disk, std::vector<qapi::BitmapInfo> bitmaps) {
  for (std::size_t i = bitmaps.size(); i-- > 1;) {
    qapi::BitmapInfo& bitmap = bitmaps[i - 1];
    const qapi::BitmapInfo& next = bitmaps[i];
    const auto session = session_of(bitmap.name);
    const SessionId following{session->chain, session->number + 1};
    if (bitmap.recording || bitmap.inconsistent.value_or(false) || !next.recording ||
        session_of(next.name) != following)
      continue;
    const std::vector<std::string> later{next.name};
    co_await put_back(disk, bitmap, later);
    bitmap.recording = true;
  }
}

}  // namespace nbdelta::client::backup
