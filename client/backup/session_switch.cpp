#include "client/backup/session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "client/backup/breaks.hpp"
#include "client/backup/obstacles.hpp"
#include "client/backup/overlay_files.hpp"
#include "client/time_text.hpp"
#include "qapi/job_commands.hpp"
#include "qapi/snapshot_commands.hpp"

// The states "prepare" and "window".
namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;
using repository::DiskEntry;
using repository::Repository;

constexpr Clock::Duration kSwitch = 60s;  // the guardian thaws long before

std::int64_t microseconds(Clock::Time time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
}

asio::awaitable<void> carry_out(qmp::Client& qmp, qapi::Transaction transaction) {
  co_await qmp.call(std::move(transaction), kSwitch);
}

}  // namespace

JournalDisk Session::journal_disk(const Disk& disk) const {
  const GuestDisk& guest = disk.plan.disk;
  const std::string folder =
      options_->overlay_dir.empty() ? folder_of(guest.base_local) : options_->overlay_dir;
  if (options_->overlay_dir.empty() && environment_->files().modified(guest.base_local) == 0)
    refuse(EINVAL, "{}: is a block device ({}): say with --overlay-dir where its overlay may grow",
           guest.name, guest.base_path);
  JournalDisk entry;
  entry.name = guest.name;
  entry.index = static_cast<std::uint32_t>(disk.index);
  entry.base_node = guest.base_node;
  entry.base_path = guest.base_path;
  entry.base_local = guest.base_local;
  entry.base_format = guest.base_format == image::Format::raw ? "raw" : "qcow2";
  entry.overlay_node = overlay_node_name(plan_.id, disk.index);
  entry.overlay_local = folder + "/" + overlay_file_name(plan_.id, guest.name);
  entry.overlay_path = options_->paths.to_qemu(entry.overlay_local);
  if (environment_->files().exists(entry.overlay_local))
    refuse(EEXIST, "{}: its overlay would be {}, and that exists; if it is in no use, remove it",
           guest.name, entry.overlay_local);
  entry.persistent = guest.can_keep_bitmaps;
  if (!options_->listen.socket.empty())
    entry.socket =
        fmt::format("{}/{}-{}.sock", options_->listen.socket, bitmap_name(plan_.id), guest.name);
  return entry;
}

/// Each disk takes the next port.
void Session::check_ports() const {
  constexpr std::size_t kPorts = 65536;
  const std::size_t first = options_->listen.port;
  if (first != 0 && first + disks_.size() > kPorts)
    refuse(EINVAL, "--listen {}:{}: {} disks need as many ports, and from there on there are {}",
           options_->listen.host, first, disks_.size(), kPorts - first);
}

/// Throws Refused where the image, or what is behind it, cannot be read here.
void Session::check_image(const GuestDisk& disk) const {
  try {
    environment_->files().check_servable(disk.base_local, disk.base_format, folders_behind(disk));
  } catch (const Error& error) {
    const int number = error.error_number();
    const bool is_elsewhere = number == ENOENT || number == ENOTDIR || number == EACCES;
    refuse(number, "{}: QEMU has it at {}, which cannot be read here: {}{}", disk.name,
           disk.base_path, error.what(),
           is_elsewhere ? "; --path QEMU=LOCAL says where it is on this machine" : "");
  }
}

asio::awaitable<void> Session::prepare() {
  Files& files = environment_->files();
  check_ports();
  Journal journal;
  journal.vm = options_->vm;
  journal.chain = plan_.id.chain;
  journal.number = plan_.id.number;
  journal.external = options_->external;
  journal.qmp = options_->qmp;
  journal.agent = options_->agent;
  journal.started = manifest_.created;
  journal.tracking =
      options_->tracking == Tracking::overlay ? repository::kByOverlay : repository::kByBitmap;
  journal.point = Repository::folder_name(plan_.id.number, manifest_.type);
  for (const Disk& disk : disks_) {
    check_image(disk.plan.disk);
    journal.disks.push_back(journal_disk(disk));
  }
  journal_ = std::move(journal);
  if (!broken("journal-after-overlays"))
    enter(phase::kPrepare);
  files.make_folder(repository().point_folder(journal_->point));
  for (Disk& disk : disks_)
    co_await add_overlay(disk, journal_->disks[disk.index]);
  const qapi::RunState state = co_await qmp_->call(qapi::QueryStatus{});
  if (state.running)
    co_await quiescence_.prepare();
  co_await remove_inconsistent_bitmaps();
  co_await check_sizes();
}

/// They can be removed while the guest writes to the base only, and would keep that from growing.
asio::awaitable<void> Session::remove_inconsistent_bitmaps() {
  for (const Disk& disk : disks_) {
    const GuestDisk& guest = disk.plan.disk;
    if (!guest.overlays.empty())
      continue;
    for (const std::string& name : inconsistent_bitmaps(guest, Owner::ours)) {
      const qapi::BlockDirtyBitmapRemove block_dirty_bitmap_remove{.node = guest.base_node,
                                                                   .name = name};
      co_await qmp_->call(block_dirty_bitmap_remove);
    }
  }
}

/// An overlay of another size would change the guest's disk.
asio::awaitable<void> Session::check_sizes() {
  const Inventory now = co_await query_inventory(*qmp_, *environment_, options_->paths);
  for (const Disk& disk : disks_) {
    const GuestDisk& planned = disk.plan.disk;
    const auto found = std::find_if(now.disks.begin(), now.disks.end(), [&](const auto& each) {
      return each.base_node == planned.base_node;
    });
    if (found == now.disks.end() || found->size != planned.size || found->top != planned.top)
      fail(EAGAIN, "{}: was changed in QEMU while the backup was prepared: try again",
           planned.name);
  }
}

asio::awaitable<void> Session::add_overlay(Disk& disk, JournalDisk& entry) {
  const GuestDisk& guest = disk.plan.disk;
  Files& files = environment_->files();
  const bool stacked = !guest.overlays.empty();
  create_overlay(files, entry.overlay_local, guest.base_local, guest.size,
                 stacked ? guest.overlays.front().path : guest.base_path,
                 stacked ? image::Format::qcow2 : guest.base_format);
  const std::string file_node = file_node_name(plan_.id, disk.index);
  const qapi::json::object file{
      {"driver", "file"}, {"node-name", file_node}, {"filename", entry.overlay_path}};
  qapi::BlockdevAdd blockdev_add{.driver = "qcow2",
                                 .node_name = entry.overlay_node,
                                 .file = file,
                                 .backing = qapi::json::value(nullptr),
                                 .read_only = std::nullopt,
                                 .discard = "unmap",
                                 .cache = std::nullopt};
  if (guest.direct)
    blockdev_add.cache = {.direct = true};
  co_await qmp_->call(blockdev_add);
  const std::uint64_t free_space = files.free_space(folder_of(entry.overlay_local));
  const std::uint64_t threshold = free_space / disks_.size() / 5 * 4;
  if (threshold != 0) {
    const qapi::BlockSetWriteThreshold block_set_write_threshold{.node_name = file_node,
                                                                 .write_threshold = threshold};
    co_await qmp_->call(block_set_write_threshold);
  }
  // Before the switch: the new overlay on the old one reads the same, but not the other way round.
  if (options_->tracking == Tracking::overlay && !broken("next-start-without-overlay"))
    write_current(files, entry.overlay_local, entry.overlay_path, base_name(guest.base_path));
}

/// What happens at the instant that the restore point shows: for all disks, or for none. The
/// snapshots go first: QEMU carries the actions out one by one, and it is a snapshot that holds a
/// disk's writes back until the last one; a write of an iothread that falls between one bitmap's
/// end and the next one's beginning would be in neither.
std::vector<qapi::TransactionAction> Session::switch_actions() const {
  using qapi::TransactionAction;
  std::vector<TransactionAction> actions;
  const std::string name = bitmap_name(plan_.id);
  for (const Disk& disk : disks_)
    actions.push_back(TransactionAction::of(qapi::BlockdevSnapshot{
        .node = disk.plan.disk.top, .overlay = overlay_node_name(plan_.id, disk.index)}));
  // By overlay, the last bitmap goes on: nothing writes to the base but the commit of the overlay,
  // should the session fail.
  for (const Disk& disk : disks_) {
    const GuestDisk& guest = disk.plan.disk;
    if (!guest.overlays.empty() || options_->tracking == Tracking::overlay)
      continue;
    if (!disk.plan.bitmap.empty())
      actions.push_back(TransactionAction::of(
          qapi::BlockDirtyBitmapDisable{.node = guest.base_node, .name = disk.plan.bitmap}));
    actions.push_back(
        TransactionAction::of(qapi::BlockDirtyBitmapAdd{.node = guest.base_node,
                                                        .name = name,
                                                        .granularity = std::nullopt,
                                                        .persistent = guest.can_keep_bitmaps,
                                                        .disabled = std::nullopt}));
  }
  return actions;
}

/// Nothing but the freeze, one transaction and the thaw happens between the first and the last
/// line of the try block.
asio::awaitable<void> Session::window() {
  enter(phase::kWindow);
  qapi::Transaction transaction{.actions = switch_actions()};
  repository::Window& window = manifest_.window;
  std::exception_ptr failure;
  try {
    co_await quiescence_.freeze(window);
    window.switch_sent_us = microseconds(environment_->clock().now());
    if (broken("two-transactions")) {
      const qapi::Transaction first{.actions = {transaction.actions.front()}};
      transaction.actions.erase(transaction.actions.begin());
      co_await qmp_->call(first, kSwitch);
    }
    asio::awaitable<void> all = carry_out(*qmp_, transaction);
    co_await quiescence_.during(std::move(all));
    window.switch_answered_us = microseconds(environment_->clock().now());
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure && broken("no-thaw-after-failed-switch"))
    std::rethrow_exception(failure);
  co_await quiescence_.thaw(window);
  const std::string still_frozen = co_await quiescence_.confirm();
  if (!still_frozen.empty()) {
    warnings_.push_back(fmt::format("the guest may still be frozen: {}", still_frozen));
    reporter_->say(warnings_.back());
    journal_->may_be_frozen = true;
    save_journal();
  }
  if (failure)
    std::rethrow_exception(failure);
  quiescence_.record(manifest_);
  if (!quiescence_.thaw_trouble().empty()) {
    warnings_.push_back(fmt::format("the thaw had to be repeated: {}", quiescence_.thaw_trouble()));
    reporter_->say(warnings_.back());
  }
  if (!quiescence_.failure().empty()) {
    warnings_.push_back(fmt::format("the file systems were not frozen: {}", quiescence_.failure()));
    reporter_->say(warnings_.back());
    if (options_->quiesce == Quiesce::require)
      refuse(EIO, "a freeze was required");
  }
}

void Session::fill_manifest() {
  manifest_.vm = options_->vm;
  manifest_.chain = plan_.id.chain;
  manifest_.number = plan_.id.number;
  manifest_.external = options_->external;
  manifest_.created = utc_text(environment_->wall_clock());
  manifest_.nbdelta_version = NBDELTA_VERSION;
  for (Disk& disk : disks_) {
    const GuestDisk& guest = disk.plan.disk;
    DiskEntry& entry = disk.entry;
    entry.name = guest.name;
    entry.size = guest.size;
    entry.type = disk.plan.full() ? repository::kFull : repository::kIncremental;
    entry.reason = disk.plan.reason;
    entry.tracking =
        options_->tracking == Tracking::overlay ? repository::kByOverlay : repository::kByBitmap;
    entry.origin = {.path = guest.base_path,
                    .format = guest.base_format == image::Format::raw ? "raw" : "qcow2",
                    .node_name = guest.base_node,
                    .device = guest.device,
                    .qdev = guest.qdev};
    if (options_->external)
      continue;
    entry.file = guest.name + ".qcow2";
    if (!disk.plan.full())
      entry.base = fmt::format("../{}/{}", previous_point_, disk.plan.previous->file.value_or(""));
  }
}

}  // namespace nbdelta::client::backup
