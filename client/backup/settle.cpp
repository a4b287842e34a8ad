#include "client/backup/settle.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "client/backup/breaks.hpp"
#include "client/backup/jobs.hpp"
#include "client/backup/overlay_files.hpp"
#include "client/backup/plan.hpp"
#include "client/json_text.hpp"
#include "qapi/export_commands.hpp"
#include "qapi/snapshot_commands.hpp"

namespace nbdelta::client::backup {
namespace {

/// What one disk's trouble may not keep from the others.
template <class Step>
asio::awaitable<std::optional<std::string>> try_step(Step step) {
  try {
    co_await step();
    co_return std::nullopt;
  } catch (const qmp::ChannelLost&) {
    throw;
  } catch (const TimedOut& error) {
    co_return error.what();
  } catch (const Error& error) {
    co_return error.what();
  }
}

std::string advice(const std::string& error) {
  if (error.find("No space left") != std::string::npos)
    return "; make room, then run 'nbdelta recover'";
  if (error.find("write\" lock") != std::string::npos)
    return "; somebody else has the image open: end that, then run 'nbdelta recover'";
  return "; run 'nbdelta recover' when the cause is gone";
}

/// Whether `later` can be merged into `bitmap`.
bool is_part(const qapi::BitmapInfo& bitmap, const qapi::BitmapInfo& later) {
  return session_of(later.name)->chain == session_of(bitmap.name)->chain &&
         !later.inconsistent.value_or(false);
}

/// A session's switch disables the last bitmap and starts the next one at the same instant; so
/// together the two miss nothing. One that is disabled alone (by somebody else, or for a session by
/// overlay that failed) has a gap.
bool is_complete(const qapi::BitmapInfo& bitmap, const std::vector<qapi::BitmapInfo>& later) {
  return bitmap.recording ||
         std::any_of(later.begin(), later.end(), [&](const qapi::BitmapInfo& each) {
           return is_part(bitmap, each) && each.recording;
         });
}

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

std::string journal_path(const std::string& folder) {
  return folder + "/nbdelta-session.json";
}

std::optional<Journal> read_journal(Files& files, const std::string& folder) {
  const std::string path = journal_path(folder);
  const auto text = files.read_text(path);
  if (!text)
    return std::nullopt;
  Journal journal;
  from_json_text(*text, journal, path);
  return journal;
}

asio::awaitable<Inventory> query_inventory(qmp::Client& qmp, Environment& environment,
                                           const Paths& paths) {
  const auto devices = co_await qmp.call(qapi::QueryBlock{});
  const qapi::QueryNamedBlockNodes query_named_block_nodes{.flat = true};
  const auto nodes = co_await qmp.call(query_named_block_nodes);
  co_return take_inventory(devices, nodes, [&](const std::string& path) {
    return environment.files().canonical(paths.to_local(path));
  });
}

bool Settler::ours(const SessionId& id) const {
  return repository_ == nullptr || id.chain == chain_;
}

bool Settler::is_durable(const SessionId& id) const {
  return latest_ && latest_->chain == id.chain && latest_->number == id.number;
}

std::string_view Settler::tracking_of(const GuestDisk& disk,
                                      const std::optional<Journal>& journal) const {
  if (latest_)
    if (const auto* entry = latest_->find(disk.name))
      return entry->tracking;
  if (repository_ != nullptr)
    return repository::kByBitmap;  // nothing to build on: no overlay need stay
  for (const qapi::BitmapInfo& bitmap : disk.bitmaps)
    if (session_of(bitmap.name))
      return repository::kByBitmap;
  return journal && journal->tracking == repository::kByBitmap ? repository::kByBitmap
                                                               : repository::kByOverlay;
}

void Settler::save(const Journal& journal) {
  if (repository_ != nullptr)
    environment_->files().write_text(journal_path(repository_->folder()), to_json_text(journal));
}

asio::awaitable<Settled> Settler::settle(std::optional<Journal>& journal) {
  settled_ = {};
  latest_ = repository_ == nullptr ? std::nullopt : repository_->latest();
  chain_ = journal ? journal->chain : latest_ ? latest_->chain : "";

  Inventory inventory = co_await query_inventory(*qmp_, *environment_, *paths_);
  if (!journal && latest_ && another_copy_has_gone_on(inventory, *latest_))
    chain_.clear();
  if (!broken("commit-while-served"))
    end_servers(inventory, journal);
  co_await end_exports(journal);
  const auto is_ours = [this](const SessionId& id) { return ours(id); };
  std::vector<StackedOverlay> tops;
  for (const GuestDisk& disk : inventory.disks)
    if (!disk.overlays.empty())
      tops.push_back(disk.overlays.front());
  std::vector<std::string> ended = co_await end_jobs(*qmp_, environment_->files(), is_ours, tops);
  for (std::string& done : ended)
    settled_.done.push_back(std::move(done));

  inventory = co_await query_inventory(*qmp_, *environment_, *paths_);
  for (const GuestDisk& disk : inventory.disks) {
    const auto problem = co_await try_step([&] { return settle_disk(disk, journal); });
    if (problem)
      settled_.problems.push_back(fmt::format("{}: {}{}", disk.name, *problem, advice(*problem)));
  }
  co_await write_current_files(journal);
  co_await remove_loose(journal);

  if (journal && settled_.problems.empty() && !settled_.overlay_kept) {
    environment_->files().remove(journal_path(repository_->folder()));
    journal.reset();
  } else if (journal) {
    if (settled_.overlay_kept)
      journal->phase = phase::kKept;
    save(*journal);
  }
  co_return std::move(settled_);
}

/// Their locks keep QEMU from committing.
void Settler::end_servers(const Inventory& inventory, const std::optional<Journal>& journal) {
  std::set<std::string> images;
  for (const GuestDisk& disk : inventory.disks) {
    images.insert(disk.base_local);
    for (const StackedOverlay& overlay : disk.overlays)
      images.insert(overlay.local);
  }
  if (journal) {
    for (const JournalDisk& disk : journal->disks)
      images.insert(disk.base_local);
    environment_->files().remove(map_socket(*journal));
  }
  const unsigned ended =
      environment_->end_servers(images, [this](const SessionId& id) { return ours(id); });
  if (ended != 0)
    settled_.done.push_back(fmt::format("ended {} nbdkit that served the images", ended));
}

asio::awaitable<void> Settler::end_exports(std::optional<Journal>& journal) {
  bool ours_was_there = journal && journal->nbd_server;
  std::size_t others = 0;
  const auto exports = co_await qmp_->call(qapi::QueryBlockExports{});
  for (const qapi::ExportInfo& info : exports) {
    const auto session = session_of(info.id);
    if (!session || !ours(*session)) {
      ++others;
      continue;
    }
    const qapi::BlockExportDel block_export_del{.id = info.id};
    co_await qmp_->call(block_export_del);
    settled_.done.push_back(fmt::format("removed the export {}", info.id));
    ours_was_there = true;
  }
  if (!ours_was_there || others != 0)
    co_return;
  try {
    co_await qmp_->call(qapi::NbdServerStop{});
  } catch (const qapi::CommandError&) {  // it does not run any more
  }
  if (journal)
    journal->nbd_server = false;
}

asio::awaitable<void> Settler::settle_disk(GuestDisk disk, std::optional<Journal>& journal) {
  const bool on_base = co_await end_overlays(disk, journal);
  if (on_base)
    co_await settle_bitmaps(std::move(disk));
}

/// Returns whether the guest runs on the base now.
asio::awaitable<bool> Settler::end_overlays(GuestDisk& disk, std::optional<Journal>& journal) {
  std::vector<StackedOverlay>& overlays = disk.overlays;
  if (overlays.empty())
    co_return true;
  const auto is_ours = [this](const StackedOverlay& overlay) { return ours(overlay.session); };
  if (std::none_of(overlays.begin(), overlays.end(), is_ours)) {
    settled_.done.push_back(
        fmt::format("{}: left as it is: it runs on an overlay of another backup ({})", disk.name,
                    overlays.front().path));
    co_return false;
  }
  for (const StackedOverlay& overlay : overlays)
    if (!is_ours(overlay))
      fail(EBUSY, "runs on an overlay of another backup: {}", overlay.path);

  for (const StackedOverlay& overlay : overlays)  // the guest has stayed on it
    if (is_committed(environment_->files(), overlay.local))
      unmark_committed(environment_->files(), overlay.local);
  if (!broken("stale-header"))
    co_await name_backing_files(disk);
  if (tracking_of(disk, journal) == repository::kByOverlay) {
    const auto last = std::find_if(overlays.begin(), overlays.end(), [&](const auto& overlay) {
      return repository_ == nullptr || is_durable(overlay.session);
    });
    if (last != overlays.end()) {
      if (repository_ != nullptr && last + 1 != overlays.end())
        co_await commit_lower(disk, static_cast<std::size_t>(last - overlays.begin()) + 1, journal);
      co_return false;
    }
  }
  // What the guest does not write to any more is committed first: that always ends.
  if (overlays.size() > 1)
    co_await commit_lower(disk, 1, journal);
  mark_earlier(disk);
  co_await ensure_bitmap(disk, overlays.front().session);
  co_await commit_all(disk, journal);
  co_return overlays.empty();
}

/// A commit that nobody saw end may have left the file that it committed. With a later overlay in
/// the base as well, that file would look like the guest's last writes.
void Settler::mark_earlier(const GuestDisk& disk) {
  Files& files = environment_->files();
  for (const std::string& local : overlays_beside(files, disk.base_local)) {
    const auto session = session_of(base_name(local));
    const bool of_disk = session && base_name(local) == overlay_file_name(*session, disk.name);
    if (of_disk && ours(*session) && was_below(*session, disk.overlays) &&
        !is_committed(files, local))
      mark_committed(files, local);
  }
}

/// A commit that nobody saw end may have left an overlay's header with the file that was committed,
/// which is about to go.
asio::awaitable<void> Settler::name_backing_files(GuestDisk& disk) {
  Files& files = environment_->files();
  for (std::size_t i = 0; i < disk.overlays.size(); ++i) {
    const bool lowest = i + 1 == disk.overlays.size();
    if (lowest && disk.base_format == image::Format::raw)
      continue;  // QEMU has named that itself, see commit_below()
    const StackedOverlay& overlay = disk.overlays[i];
    const std::string local = lowest ? disk.base_local : disk.overlays[i + 1].local;
    const std::string path = lowest ? disk.base_path : disk.overlays[i + 1].path;
    const auto named = files.backing_of(overlay.local);
    if (!named || files.canonical(paths_->to_local(*named)) == local)
      continue;
    const qapi::ChangeBackingFile change_backing_file{
        .device = disk.top, .image_node = overlay.node_name, .backing_file = path};
    co_await qmp_->call(change_backing_file);
    files.sync(overlay.local);
    settled_.done.push_back(
        fmt::format("{}: {} has the backing file {} again", disk.name, overlay.path, path));
  }
}

/// From here on bases are written to by commits.
void Settler::enter_commit(std::optional<Journal>& journal) {
  if (!journal || journal->phase == phase::kCommit || journal->phase == phase::kKept)
    return;
  journal->phase = phase::kCommit;
  journal->since = environment_->wall_clock();
  save(*journal);
}

/// Overlays from `first` on, none of which is the one that the guest writes to.
asio::awaitable<void> Settler::commit_lower(GuestDisk& disk, std::size_t first,
                                            std::optional<Journal>& journal) {
  std::vector<StackedOverlay>& overlays = disk.overlays;
  const StackedOverlay& top = overlays[first];
  enter_commit(journal);
  co_await make_base_read_only(*qmp_, disk);
  const LowerCommit commit{.job = overlay_node_name(top.session, first) + "-b",
                           .active = disk.top,
                           .above = overlays[first - 1].node_name,
                           .above_local = overlays[first - 1].local,
                           .top = top.node_name,
                           .top_path = top.path,
                           .base = disk.base_node,
                           .base_path = disk.base_path,
                           .base_local = disk.base_local,
                           .base_format = disk.base_format};
  co_await commit_below(*qmp_, environment_->files(), commit);
  while (overlays.size() > first) {
    settled_.done.push_back(
        fmt::format("{}: committed {} into {}", disk.name, overlays.back().path, disk.base_path));
    const bool deleted = co_await delete_node(overlays.back().node_name);
    if (deleted)
      drop_overlay(overlays.back().local, disk.base_local);
    overlays.pop_back();
  }
}

asio::awaitable<void> Settler::commit_all(GuestDisk& disk, std::optional<Journal>& journal) {
  const StackedOverlay overlay = disk.overlays.front();
  enter_commit(journal);
  const ActiveCommit commit{.job = overlay_node_name(overlay.session, 0) + "-a",
                            .top = disk.top,
                            .base = disk.base_node,
                            .overlay_local = overlay.local,
                            .qmp_address = options_->qmp,
                            .ready_deadline = options_->commit_deadline};
  if (broken("overlay-removed-before-commit"))
    drop_overlay(overlay.local, disk.base_local);
  const CommitEnd end = co_await commit_active(*qmp_, *environment_, commit);
  if (end == CommitEnd::not_ready) {
    settled_.overlay_kept = true;
    settled_.done.push_back(fmt::format(
        "{}: the guest writes faster than its overlay can be committed: {} stays, and the next "
        "backup or 'nbdelta recover' goes on with it",
        disk.name, overlay.path));
    co_return;
  }
  settled_.done.push_back(
      fmt::format("{}: committed {} into {}", disk.name, overlay.path, disk.base_path));
  const bool deleted = co_await delete_node(overlay.node_name);
  if (!deleted)
    co_return;
  drop_overlay(overlay.local, disk.base_local);
  disk.overlays.clear();
}

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
    const std::vector<qapi::BitmapInfo> later(wanted + 1, bitmaps.end());
    if (is_complete(*wanted, later)) {
      co_await put_back(disk, *wanted, later);
    } else {
      settled_.done.push_back(fmt::format(
          "{}: removed the bitmap {}: it was disabled and has a gap", disk.name, wanted->name));
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
                                        std::vector<qapi::BitmapInfo> later) {
  std::vector<std::string> names;
  for (const qapi::BitmapInfo& each : later)
    if (is_part(bitmap, each))
      names.push_back(each.name);
  if (names.empty())
    co_return;
  // The guest writes meanwhile: what comes after the enabling is in both, and what was before is
  // merged.
  using qapi::TransactionAction;
  qapi::Transaction transaction;
  if (!bitmap.recording)
    transaction.actions.push_back(TransactionAction::of(
        qapi::BlockDirtyBitmapEnable{.node = disk.base_node, .name = bitmap.name}));
  if (broken("put-back-in-two-steps")) {
    const qapi::BlockDirtyBitmapMerge merge{
        .node = disk.base_node, .target = bitmap.name, .bitmaps = names};
    co_await qmp_->call(merge);
  } else if (!broken("dirty-bits-dropped")) {
    transaction.actions.push_back(TransactionAction::of(qapi::BlockDirtyBitmapMerge{
        .node = disk.base_node, .target = bitmap.name, .bitmaps = names}));
  }
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
    const std::vector<qapi::BitmapInfo> later(1, next);
    co_await put_back(disk, bitmap, later);
    bitmap.recording = true;
  }
}

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
    if (!broken("journal-trusted"))
      loose.erase(files.canonical(paths_->to_local(node.file)));
  for (const auto& [local, what] : loose) {
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

/// A guest that starts next must find the overlay that holds its last writes.
asio::awaitable<void> Settler::write_current_files(const std::optional<Journal>& journal) {
  Files& files = environment_->files();
  const Inventory inventory = co_await query_inventory(*qmp_, *environment_, *paths_);
  for (const GuestDisk& disk : inventory.disks) {
    if (disk.overlays.empty() || tracking_of(disk, journal) != repository::kByOverlay)
      continue;
    const StackedOverlay& top = disk.overlays.front();
    write_current(files, top.local, top.path, base_name(disk.base_path));
  }
}

asio::awaitable<bool> Settler::delete_node(std::string node) {
  const std::string refusal = co_await remove_node(*qmp_, node);
  if (!refusal.empty())
    settled_.problems.push_back(fmt::format("{}: {}", node, refusal));
  co_return refusal.empty();
}

void Settler::drop_overlay(const std::string& local, const std::string& base_local) {
  if (remove_overlay(environment_->files(), local, base_local))
    settled_.done.push_back(fmt::format("removed {}", local));
}

}  // namespace nbdelta::client::backup
