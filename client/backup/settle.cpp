#include "client/backup/settle.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "client/backup/breaks.hpp"
#include "client/backup/jobs.hpp"
#include "client/backup/obstacles.hpp"
#include "client/backup/overlay_files.hpp"
#include "client/backup/plan.hpp"
#include "client/json_text.hpp"
#include "qapi/export_commands.hpp"

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
  } catch (const Error& error) {
    co_return error.what();
  }
}

std::vector<std::string> node_names_of(const std::vector<StackedOverlay>& overlays,
                                       std::size_t first) {
  std::vector<std::string> names;
  for (std::size_t i = first; i < overlays.size(); ++i)
    names.push_back(overlays[i].node_name);
  return names;
}

std::string advice(const std::string& error) {
  if (error.find("No space left") != std::string::npos)
    return "; make room, then run 'nbdelta recover'";
  if (error.find("write\" lock") != std::string::npos)
    return "; somebody else has the image open: end that, then run 'nbdelta recover'";
  return "; run 'nbdelta recover' when the cause is gone";
}

}  // namespace

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
  made_room_ = false;
  latest_ = repository_ == nullptr ? std::nullopt : repository_->latest();
  chain_ = journal ? journal->chain : latest_ ? latest_->chain : "";

  Inventory inventory = co_await query_inventory(*qmp_, *environment_, *paths_);
  if (!journal && latest_ && another_copy_has_gone_on(inventory, *latest_))
    chain_.clear();
  if (!broken("commit-while-served"))
    end_servers(inventory, journal);
  co_await end_exports(journal);
  const auto is_ours = [this](const SessionId& id) { return ours(id); };
  std::map<std::string, std::string> tops;
  for (const GuestDisk& disk : inventory.disks)
    if (!disk.overlays.empty())
      tops[active_job_name(disk.overlays.front().session, disk.index)] =
          disk.overlays.front().local;
  std::vector<std::string> ended =
      co_await end_jobs(*qmp_, *environment_, options_->qmp, is_ours, tops);
  for (std::string& done : ended)
    settled_.done.push_back(std::move(done));

  inventory = co_await query_inventory(*qmp_, *environment_, *paths_);
  for (const GuestDisk& disk : inventory.disks) {
    const auto problem = co_await try_step([&] { return settle_disk(disk, journal); });
    if (problem)
      settled_.problems.push_back(
          fmt::format("{}: {}{}{}", disk.name, *problem, size_trouble(disk), advice(*problem)));
  }
  co_await write_current_files(journal);
  co_await remove_loose(journal);
  // A session that was interrupted may have made room, too.
  const bool has_room = made_room_ || journal;
  const auto trouble = co_await try_step([&] { return look_after_space(has_room); });
  if (trouble)
    settled_.problems.push_back(fmt::format("the guest stands without space: {}", *trouble));

  if (journal && settled_.problems.empty() && !settled_.overlay_kept) {
    environment_->files().remove(journal_path(repository_->folder()));
    journal.reset();
  } else if (journal) {
    if (settled_.overlay_kept)
      journal->phase = phase::kKept;
    try {
      save(*journal);
    } catch (const Error& error) {
      settled_.problems.push_back(error.what());
    }
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
    for (const JournalDisk& disk : journal->disks) {
      images.insert(disk.base_local);
      // What is below the overlay was served too, and the disk may have been unplugged.
      for (std::optional<std::string> each = disk.overlay_local;
           each && *each != disk.base_local && images.insert(*each).second;)
        each = environment_->files().backing_of(*each);
    }
    environment_->files().remove(map_socket(*journal));
  }
  const auto is_ours = [this](const SessionId& id) { return ours(id); };
  const unsigned ended = environment_->end_servers(images, is_ours);
  if (journal)
    remove_export_sockets(environment_->files(), *journal);
  if (repository_ != nullptr)
    environment_->remove_temporary(is_ours);
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
    try {
      const qapi::BlockExportDel block_export_del{.id = info.id, .mode = "hard"};
      co_await qmp_->call(block_export_del);
    } catch (const qapi::CommandError& error) {
      if (error.description().find("is not found") == std::string::npos)
        throw;  // else one that was deleted before has ended meanwhile
    }
    settled_.done.push_back(fmt::format("removed the export {}", info.id));
    ours_was_there = true;
  }
  if (!ours_was_there || others != 0)
    co_return;
  try {
    co_await qmp_->call(qapi::NbdServerStop{});
  } catch (const qapi::CommandError& error) {
    if (error.description().find("not running") == std::string::npos &&
        !broken("nbd-server-forgotten")) {
      settled_.problems.push_back(fmt::format("QEMU's NBD server does not stop: {}{}",
                                              error.description(), advice(error.description())));
      co_return;
    }
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
  {
    unmark_committed(environment_->files(), overlay.local);
    unmark_committing(environment_->files(), overlay.local);
  }
  if (!broken("stale-header"))
    co_await name_backing_files(disk);
  mark_what_was_below(disk);
  co_await let_base_grow(*qmp_, disk);
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
  co_await ensure_bitmap(disk, overlays.front().session);
  co_await commit_all(disk, journal);
  co_return overlays.empty();
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
    co_await flush(*qmp_, files, overlay.node_name, overlay.local);
    settled_.done.push_back(
        fmt::format("{}: {} has the backing file {} again", disk.name, overlay.path, path));
  }
}

/// A commit that nobody saw end has left the overlay that it committed. What is committed from here
/// on is newer: nobody may commit that one again, should QEMU end before it is removed.
void Settler::mark_what_was_below(const GuestDisk& disk) {
  Files& files = environment_->files();
  for (const std::string& local : overlays_beside(files, disk.base_local)) {
    const auto session = session_of(base_name(local));
    const bool stacked =
        std::any_of(disk.overlays.begin(), disk.overlays.end(),
                    [&](const StackedOverlay& overlay) { return overlay.local == local; });
    const bool was_below =
        std::any_of(disk.overlays.begin(), disk.overlays.end(), [&](const StackedOverlay& overlay) {
          return session && overlay.session.chain == session->chain &&
                 overlay.session.number > session->number;
        });
    if (was_below && !stacked && ours(*session) &&
        base_name(local) == overlay_file_name(*session, disk.name) && !is_committed(files, local))
      mark_committed(files, local);
  }
}

/// From here on a base is written to by a commit: the journal says so or, where there is none or no
/// room for it, the mark of the lowest overlay.
void Settler::enter_commit(std::optional<Journal>& journal, const std::string& lowest) {
  Files& files = environment_->files();
  if (journal && repository_ != nullptr) {
    try {
      const std::optional<Journal> saved = read_journal(files, repository_->folder());
      if (saved && (saved->phase == phase::kCommit || saved->phase == phase::kKept))
        return;
      journal->phase = phase::kCommit;
      journal->since = environment_->wall_clock();
      save(*journal);
      return;
    } catch (
        const Error&) {  // the guest is put back all the same; the end says it, if it fails too
    }
  }
  try {
    mark_committing(files, lowest);
  } catch (const Error&) {  // likewise
  }
}

/// Overlays from `first` on, none of which is the one that the guest writes to.
asio::awaitable<void> Settler::commit_lower(GuestDisk& disk, std::size_t first,
                                            std::optional<Journal>& journal) {
  std::vector<StackedOverlay>& overlays = disk.overlays;
  const StackedOverlay& top = overlays[first];
  co_await check_for_snapshots(*qmp_, node_names_of(overlays, first));
  enter_commit(journal, overlays.back().local);
  co_await reopen_base(*qmp_, disk, image::Access::read);
  const LowerCommit commit{.job = lower_job_name(top.session, disk.index),
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
  for (std::size_t i = first; i < overlays.size(); ++i)
    mark_merged(environment_->files(), overlays[i].local);
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
  const std::vector<std::string> only_node{overlay.node_name};
  co_await check_for_snapshots(*qmp_, only_node);
  enter_commit(journal, overlay.local);
  const ActiveCommit commit{.job = active_job_name(overlay.session, disk.index),
                            .top = disk.top,
                            .base = disk.base_node,
                            .overlay_local = overlay.local,
                            .qmp_address = options_->qmp,
                            .ready_deadline = options_->commit_deadline,
                            .stops_guest = must_stop_guest(qmp_->major(), disk.base_format)};
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

/// A guest that starts next must find the overlay that holds its last writes.
asio::awaitable<void> Settler::write_current_files(const std::optional<Journal>& journal) {
  Files& files = environment_->files();
  const Inventory inventory = co_await query_inventory(*qmp_, *environment_, *paths_);
  for (const GuestDisk& disk : inventory.disks) {
    if (disk.overlays.empty() || tracking_of(disk, journal) != repository::kByOverlay)
      continue;
    const StackedOverlay& top = disk.overlays.front();
    try {
      write_current(files, top.local, top.path, base_name(disk.base_path));
    } catch (const Error& error) {
      if (error.error_number() == EEXIST || files.exists(top.local))
        throw;
      refuse(
          ENOENT,
          "{}: QEMU has its overlay at {}, and there is no {} here; --path QEMU=LOCAL says where "
          "it is on this machine",
          disk.name, top.path, top.local);
    }
  }
}

/// Of a guest that QEMU has stopped since its storage took no more.
asio::awaitable<void> Settler::look_after_space(bool has_room) {
  const qapi::RunState state = co_await qmp_->call(qapi::QueryStatus{});
  if (state.status != "io-error" || broken("guest-without-space-left"))
    co_return;
  const auto devices = co_await qmp_->call(qapi::QueryBlock{});
  if (std::none_of(devices.begin(), devices.end(),
                   [](const qapi::DeviceInfo& device) { return device.io_status == "nospace"; }))
    co_return;
  if (has_room)
    co_await qmp_->call(qapi::Cont{});
  settled_.space =
      has_room ? "the guest had been stopped, with no space left for what it wrote, and was let go "
                 "on"
               : "the guest stands, with no space left for what it writes: make room, then 'cont'; "
                 "or back up with an --overlay-dir that has room";
  settled_.done.push_back(settled_.space);
}

asio::awaitable<bool> Settler::delete_node(std::string node) {
  const std::string refusal = co_await remove_node(*qmp_, node);
  if (!refusal.empty())
    settled_.problems.push_back(fmt::format("{}: {}", node, refusal));
  co_return refusal.empty();
}

void Settler::drop_overlay(const std::string& local, const std::string& base_local) {
  if (!remove_overlay(environment_->files(), local, base_local))
    return;
  settled_.done.push_back(fmt::format("removed {}", local));
  made_room_ = true;
}

}  // namespace nbdelta::client::backup
