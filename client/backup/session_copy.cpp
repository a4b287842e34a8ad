#include "client/backup/session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "base/percent.hpp"
#include "base/units.hpp"
#include "client/backup/bitmap_parts.hpp"
#include "client/backup/breaks.hpp"
#include "client/backup/jobs.hpp"
#include "client/backup/obstacles.hpp"
#include "client/backup/overlay_files.hpp"
#include "qapi/export_commands.hpp"
#include "qapi/job_commands.hpp"
#include "qapi/snapshot_commands.hpp"

// The states "export" and "pull".
namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;

constexpr unsigned kServerRestarts = 2;
constexpr Clock::Duration kExportEnd = 10s;
constexpr Clock::Duration kExportPoll = 10ms;

}  // namespace

/// Brings the disk to the shape that its map can be read in, where earlier overlays are in place:
/// the guest writes to the new one only.
asio::awaitable<void> Session::absorb(Disk& disk) {
  GuestDisk& guest = disk.plan.disk;
  std::vector<StackedOverlay>& overlays = guest.overlays;
  const std::string node = overlay_node_name(plan_.id, disk.index);
  const bool into_base = disk.plan.map == MapSource::absorbed ||
                         (disk.plan.map == MapSource::none && !overlays.empty());
  const bool into_overlay = disk.plan.map == MapSource::layer && overlays.size() > 1 &&
                            !broken("lowest-overlay-alone-copied");
  if (!into_base && !into_overlay)
    co_return;
  if (journal_->phase != phase::kAbsorb)
    enter(phase::kAbsorb);
  std::vector<std::string> to_go;
  for (std::size_t i = 0; i < overlays.size() - (into_base ? 0 : 1); ++i)
    to_go.push_back(overlays[i].node_name);
  co_await check_for_snapshots(*qmp_, to_go);
  if (into_base) {
    co_await let_base_grow(*qmp_, guest);
    co_await reopen_base(*qmp_, guest, image::Access::read);
  }
  LowerCommit commit{.job = lower_job_name(plan_.id, disk.index),
                     .active = node,
                     .above = node,
                     .above_local = journal_->disks[disk.index].overlay_local,
                     .top = overlays.front().node_name,
                     .top_path = overlays.front().path,
                     .base = guest.base_node,
                     .base_path = guest.base_path,
                     .base_local = guest.base_local,
                     .base_format = guest.base_format};
  if (into_overlay) {
    commit.base = overlays.back().node_name;
    commit.base_path = overlays.back().path;
    commit.base_local = overlays.back().local;
    commit.base_format = image::Format::qcow2;
  }
  try {
    co_await commit_below(*qmp_, environment_->files(), commit);
  } catch (const qmp::ChannelLost&) {
    throw;
  } catch (const Error& error) {
    const std::string trouble = size_trouble(guest);
    if (trouble.empty())
      throw;
    fail(error.error_number(), "{}: {}{}", guest.name, error.what(), trouble);
  }
  const std::size_t stay = into_base ? 0 : 1;
  for (std::size_t i = 0; i < overlays.size() - stay; ++i)
    mark_merged(environment_->files(), overlays[i].local);
  while (overlays.size() > stay) {
    const StackedOverlay& merged = overlays.front();
    const std::string refusal = co_await remove_node(*qmp_, merged.node_name);
    if (refusal.empty())  // else it is left to what ends the session
      remove_overlay(environment_->files(), merged.local, guest.base_local);
    overlays.erase(overlays.begin());
  }
  if (disk.plan.map != MapSource::absorbed)
    co_return;
  // The base does not change now, so these need not be one step.
  const std::string map = bitmap_name(plan_.id) + "-map";
  std::vector<std::string> parts{disk.plan.bitmap};
  for (const qapi::BitmapInfo& bitmap : guest.bitmaps)
    if (bitmap.name == disk.plan.bitmap)
      for (std::string& later : later_parts(bitmap, guest.bitmaps))
        parts.push_back(std::move(later));
  const qapi::BlockDirtyBitmapAdd block_dirty_bitmap_add{.node = guest.base_node,
                                                         .name = map,
                                                         .granularity = std::nullopt,
                                                         .persistent = false,
                                                         .disabled = true};
  co_await qmp_->call(block_dirty_bitmap_add);
  const qapi::BlockDirtyBitmapMerge block_dirty_bitmap_merge{
      .node = guest.base_node, .target = map, .bitmaps = parts};
  co_await qmp_->call(block_dirty_bitmap_merge);
  disk.map_bitmap = map;
}

/// Has QEMU serve the base's bitmap; returns the export's id, and fills the request.
asio::awaitable<std::string> Session::export_map(Disk& disk) {
  const std::string id = overlay_node_name(plan_.id, disk.index);
  qapi::BlockExportAdd command;
  command.id = id;
  command.node_name = disk.plan.disk.base_node;
  command.name = id;
  command.bitmaps.push_back(disk.map_bitmap);
  co_await qmp_->call(command);
  co_return id;
}

/// It keeps its bitmap busy until then.
asio::awaitable<void> Session::wait_for_end_of_export(std::string id) {
  const Clock::Time deadline = environment_->clock().now() + kExportEnd;
  while (true) {
    const auto exports = co_await qmp_->call(qapi::QueryBlockExports{});
    if (std::none_of(exports.begin(), exports.end(),
                     [&](const qapi::ExportInfo& each) { return each.id == id; }))
      co_return;
    if (environment_->clock().now() > deadline)
      throw TimedOut(fmt::format("QEMU's export {} does not end", id));
    co_await environment_->clock().wait(kExportPoll);
  }
}

/// Nobody can be left reading QEMU's export when the base is committed into.
asio::awaitable<void> Session::drop_map(Disk& disk, std::string id) {
  const qapi::BlockExportDel block_export_del{.id = id, .mode = "hard"};
  co_await qmp_->call(block_export_del);
  co_await wait_for_end_of_export(id);
  if (disk.plan.map == MapSource::absorbed || broken("bitmap-dropped-before-fsync")) {
    const qapi::BlockDirtyBitmapRemove block_dirty_bitmap_remove{.node = disk.plan.disk.base_node,
                                                                 .name = disk.map_bitmap};
    co_await qmp_->call(block_dirty_bitmap_remove);
  }
}

asio::awaitable<void> Session::start_nbd_server() {
  journal_->nbd_server = true;
  save_journal();
  qapi::NbdServerStart start;
  start.address.data.path = options_->paths.to_qemu(map_socket(*journal_));
  std::string refused;
  try {
    co_await qmp_->call(start);
    co_return;
  } catch (const qapi::CommandError& error) {
    refused = error.description();
  }
  journal_->nbd_server = false;  // somebody else's
  save_journal();
  fail(EBUSY,
       "the dirty bitmap of a raw image is read from QEMU's NBD server, and that cannot be had "
       "({}); --tracking overlay needs none",
       refused);
}

asio::awaitable<void> Session::export_all() {
  for (Disk& disk : disks_) {
    co_await absorb(disk);
    if (disk.plan.map == MapSource::qemu)
      disk.map_bitmap = disk.plan.bitmap;
  }
  const bool maps_in_qemu = std::any_of(disks_.begin(), disks_.end(),
                                        [](const Disk& disk) { return !disk.map_bitmap.empty(); });
  if (maps_in_qemu) {
    co_await start_nbd_server();
  }
  for (Disk& disk : disks_) {
    check_stop();
    co_await start_server(disk);
  }
  if (maps_in_qemu) {
    co_await qmp_->call(qapi::NbdServerStop{});
    journal_->nbd_server = false;
  }
  enter(phase::kExport);
}

std::vector<std::string> Session::folders_behind(const GuestDisk& disk) const {
  std::vector<std::string> folders;
  for (const std::string& path : disk.behind_base) {
    const std::string local = options_->paths.to_local(path);
    for (const std::string& each : {local, environment_->files().canonical(local)})
      if (const std::string folder = folder_of(each);
          std::find(folders.begin(), folders.end(), folder) == folders.end())
        folders.push_back(folder);
  }
  return folders;
}

asio::awaitable<void> Session::start_server(Disk& disk) {
  const GuestDisk& guest = disk.plan.disk;
  const bool layer = disk.plan.map == MapSource::layer;
  ServeRequest request;
  request.image = layer ? guest.overlays.back().local : guest.base_local;
  request.format = layer ? image::Format::qcow2 : guest.base_format;
  if (!layer)
    request.backing = folders_behind(guest);
  request.name = overlay_node_name(plan_.id, disk.index);
  request.lifetime = options_->external ? Lifetime::ended : Lifetime::session;
  request.listen = options_->listen;
  if (!request.listen.socket.empty())
    request.listen.socket = *journal_->disks[disk.index].socket;
  else if (request.listen.port != 0)
    request.listen.port = static_cast<std::uint16_t>(request.listen.port + disk.index);
  std::string id;
  if (!disk.map_bitmap.empty() && !disk.server) {
    id = co_await export_map(disk);
    request.map =
        fmt::format("nbd+unix:///{}?socket={}", id, percent_encoded(map_socket(*journal_)));
    request.map_context = "qemu:dirty-bitmap:" + disk.map_bitmap;
  }
  request.direct = options_->direct && id.empty();
  if (options_->direct && !request.direct)
    reporter_->say(fmt::format(
        "{}: its changes are known to QEMU alone: it is read through nbdkit, not directly",
        guest.name));
  disk.server = co_await environment_->serve(request);
  if (!id.empty())
    co_await drop_map(disk, id);
  const std::string export_name = disk.plan.map == MapSource::none    ? "image"
                                  : layer                             ? "layer"
                                  : disk.plan.map == MapSource::image ? "dirty:" + disk.plan.bitmap
                                                                      : "dirty";
  disk.uri = disk.server->uri(export_name);
}

asio::awaitable<void> Session::pull_all() {
  for (Disk& disk : disks_)
    co_await pull_disk(disk);
}

asio::awaitable<void> Session::pull_disk(Disk& disk) {
  PullRequest request{
      .uri = {},
      .target = fmt::format("{}/{}", repository().point_folder(journal_->point), *disk.entry.file),
      .base = disk.entry.base.value_or("")};
  for (unsigned restarts = 0;; ++restarts) {
    check_stop();
    std::exception_ptr failure;
    pull::Counters counters;
    reporter_->progress(disk.entry.name, &counters);
    try {
      request.uri = disk.uri;
      const PullResult result = co_await environment_->pull(request, counters);
      disk.entry.written = result.written;
      disk.entry.zeroed = result.zeroed;
      disk.entry.extents = result.extents;
    } catch (...) {
      failure = std::current_exception();
    }
    reporter_->progress(disk.entry.name, nullptr);
    if (!failure)
      co_return;
    const bool again = !disk.server->running() && disk.map_bitmap.empty() &&
                       restarts < kServerRestarts && !environment_->stop_requested();
    if (!again)
      std::rethrow_exception(failure);
    reporter_->say(fmt::format("{}: nbdkit has died; starting it again", disk.entry.name));
    co_await start_server(disk);
  }
}

/// While nothing is asked of QEMU. Never ends by itself.
asio::awaitable<void> Session::receive_events() {
  bool lost = false;
  while (!lost) {
    try {
      co_await qmp_->next_event();
    } catch (const qmp::ChannelLost&) {
      lost = true;
    }
  }
  while (true)
    co_await environment_->clock().wait(1h);
}

void Session::take_note(const qapi::Event& event) {
  if (event.name == "SHUTDOWN" && journal_ && journal_->phase == phase::kExport)
    reporter_->say("the guest has shut down; what was frozen is still being copied");
  if (event.name == qapi::BlockWriteThresholdEvent::kName && journal_)
    warn_of_threshold(event);
}

void Session::warn_of_threshold(const qapi::Event& event) {
  qapi::BlockWriteThresholdEvent data;
  try {
    data = qapi::event_data<qapi::BlockWriteThresholdEvent>(event);
  } catch (const Error&) {  // nothing depends on having understood it
    return;
  }
  for (const JournalDisk& disk : journal_->disks)
    if (data.node_name == file_node_name(journal_->id(), disk.index)) {
      warnings_.push_back(fmt::format(
          "{}: the overlay {} has grown beyond {}, four fifths of what was free: make room, or the "
          "guest will stop when the storage is full",
          disk.name, disk.overlay_local, format_size(data.write_threshold)));
      reporter_->say(warnings_.back());
    }
}

}  // namespace nbdelta::client::backup
