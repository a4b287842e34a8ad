#include "client/backup/session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <set>
#include <utility>

#include "base/units.hpp"
#include "client/backup/jobs.hpp"
#include "client/backup/overlay_files.hpp"
#include "client/json_text.hpp"
#include "client/time_text.hpp"
#include "qapi/export_commands.hpp"
#include "qapi/job_commands.hpp"
#include "qapi/snapshot_commands.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;
using repository::DiskEntry;
using repository::Repository;

constexpr Clock::Duration kSwitch = 60s;  // the guardian thaws long before
constexpr unsigned kServerRestarts = 2;

/// What a session cannot do without (QEMU 5.2 has all of it).
constexpr const char* kNeeded[] = {"blockdev-add",     "blockdev-del",
                                   "transaction",      "block-dirty-bitmap-merge",
                                   "block-commit",     "query-named-block-nodes",
                                   "job-complete",     "job-dismiss",
                                   "block-export-add", "query-block-exports",
                                   "query-jobs",       "block-set-write-threshold"};

std::int64_t microseconds(Clock::Time time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
}

std::string version_text(const qapi::Greeting& greeting) {
  return fmt::format("{}.{}.{}", greeting.major, greeting.minor, greeting.micro);
}

}  // namespace

Session::Session(Environment& environment, const Options& options, const Reporter& reporter)
    : environment_(&environment),
      options_(&options),
      reporter_(&reporter),
      quiescence_(environment, options) {}

Repository Session::repository() {
  return Repository(environment_->files(), options_->folder);
}

void Session::save_journal() {
  environment_->files().write_text(journal_path(options_->folder), to_json_text(*journal_));
}

void Session::enter(std::string_view phase) {
  journal_->phase = phase;
  journal_->since = environment_->wall_clock();
  save_journal();
}

void Session::check_stop() const {
  if (environment_->stop_requested())
    fail(EINTR, "interrupted");
}

asio::awaitable<void> Session::connect() {
  qmp_ = std::make_unique<qmp::Client>(co_await environment_->connect_qmp(options_->qmp),
                                       environment_->clock());
  const qapi::Greeting greeting = co_await qmp_->open();
  manifest_.qemu_version = version_text(greeting);
  co_await check_commands(greeting);
}

asio::awaitable<void> Session::check_commands(const qapi::Greeting& greeting) {
  std::set<std::string> known;
  const auto commands = co_await qmp_->call(qapi::QueryCommands{});
  for (const qapi::CommandInfo& command : commands)
    known.insert(command.name);
  for (const char* needed : kNeeded)
    if (!known.count(needed))
      refuse(ENOSYS, "QEMU {} is too old: it has no command {} (5.2 has all that is needed)",
             version_text(greeting), needed);
}

asio::awaitable<void> Session::check_guest() {
  const qapi::RunState state = co_await qmp_->call(qapi::QueryStatus{});
  const qapi::MigrationInfo migration = co_await qmp_->call(qapi::QueryMigrate{});
  static const std::set<std::string> kMigrating{"setup",      "active",     "postcopy-active",
                                                "device",     "cancelling", "pre-switchover",
                                                "wait-unplug"};
  if (state.status == "inmigrate" || state.status == "postmigrate" ||
      state.status == "finish-migrate" || kMigrating.count(migration.status.value_or("")))
    refuse(EBUSY, "the guest is migrating ({}); try again when it has arrived",
           migration.status.value_or(state.status));
  if (state.running)
    co_return;
  if (options_->quiesce == Quiesce::require)
    refuse(EBUSY, "the guest does not run ({}): it cannot be frozen", state.status);
  warnings_.push_back(fmt::format("the guest does not run ({}): no freeze", state.status));
  reporter_->say(warnings_.back());
}

/// Puts right what earlier sessions have left. Throws Refused where one is open on purpose.
asio::awaitable<void> Session::settle_leftover() {
  journal_ = read_journal(environment_->files(), options_->folder);
  if (journal_ && journal_->external && journal_->phase == phase::kExport)
    refuse(EBUSY,
           "a session of external software is open since {}: end it with 'nbdelta end --success' "
           "or 'nbdelta end --failure'",
           journal_->started);
  const bool in_place = co_await overlays_are_in_place();
  if (in_place) {
    reporter_->say("the overlay of an earlier session is still in place: going on with it");
    journal_.reset();
    co_return;
  }
  if (journal_) {
    reporter_->say(
        fmt::format("an earlier session ({}, begun {}) has not ended: putting it right first",
                    journal_->number, journal_->started));
    if (options_->agent && journal_->phase == phase::kWindow) {
      const std::int64_t thawed = co_await quiescence_.release();
      if (thawed > 0)
        reporter_->say(fmt::format("thawed {} file systems of the guest", thawed));
    }
  }
  const Settled settled = co_await settle();
  for (const std::string& done : settled.done)
    reporter_->say(done);
  if (!settled.problems.empty())
    fail(EBUSY, "{}", settled.problems.front());
  journal_.reset();
}

/// Of a session whose commit did not end: nothing need be tried again.
asio::awaitable<bool> Session::overlays_are_in_place() {
  if (!journal_ || journal_->phase != phase::kKept)
    co_return false;
  const Inventory inventory = co_await query_inventory(*qmp_, *environment_, options_->paths);
  std::set<std::string> stacked;
  for (const GuestDisk& disk : inventory.disks)
    for (const StackedOverlay& overlay : disk.overlays)
      stacked.insert(overlay.local);
  for (const JournalDisk& disk : journal_->disks)
    if (environment_->files().exists(disk.overlay_local) && !stacked.count(disk.overlay_local))
      co_return false;
  co_return true;
}

asio::awaitable<Plan> Session::make_plan_now() {
  Repository points = repository();
  Situation situation;
  situation.inventory = co_await query_inventory(*qmp_, *environment_, options_->paths);
  situation.latest = points.latest();
  situation.highest_number = points.highest_number();
  situation.new_chain = journal_ ? journal_->chain : chain_name(environment_->random());
  if (situation.latest)
    previous_point_ = Repository::folder_name(situation.latest->number, situation.latest->type);
  const std::string folder = points.point_folder(previous_point_);
  situation.file_exists = [this, folder](const DiskEntry& entry) {
    return entry.file && environment_->files().exists(folder + "/" + *entry.file);
  };
  co_return make_plan(situation, *options_);
}

asio::awaitable<Forecast> Session::forecast() {
  co_await connect();
  co_await check_guest();
  Forecast forecast;
  journal_ = read_journal(environment_->files(), options_->folder);
  if (journal_)
    forecast.notes.push_back(fmt::format(
        "an earlier session ({}) has not ended: it would be put right first", journal_->number));
  forecast.plan = co_await make_plan_now();
  forecast.notes.insert(forecast.notes.end(), warnings_.begin(), warnings_.end());
  co_return forecast;
}

/// Everything before the first change.
asio::awaitable<void> Session::open_session() {
  Repository points = repository();
  lock_ = points.lock();
  co_await connect();
  co_await check_guest();
  co_await settle_leftover();
  points.remove_unfinished();
  plan_ = co_await make_plan_now();
  for (const std::string& note : plan_.notes)
    reporter_->say(note);
  for (std::size_t i = 0; i < plan_.disks.size(); ++i) {
    Disk disk;
    disk.plan = std::move(plan_.disks[i]);
    disk.index = i;
    if (disk.plan.reason)
      reporter_->say(
          fmt::format("{}: a full backup, because {}", disk.plan.disk.name, *disk.plan.reason));
    disks_.push_back(std::move(disk));
  }
  plan_.disks.clear();
  const bool full =
      std::all_of(disks_.begin(), disks_.end(), [](const Disk& disk) { return disk.plan.full(); });
  manifest_.type = full ? repository::kFull : repository::kIncremental;
  fill_manifest();
}

JournalDisk Session::journal_disk(const Disk& disk) const {
  const GuestDisk& guest = disk.plan.disk;
  const std::string base_local =
      guest.overlays.empty() ? guest.base_local : guest.overlays.front().local;
  const std::string folder =
      options_->overlay_dir.empty() ? folder_of(base_local) : options_->overlay_dir;
  if (folder == "/dev" || folder.starts_with("/dev/"))
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
  entry.persistent = guest.can_keep_bitmaps;
  return entry;
}

asio::awaitable<void> Session::prepare() {
  Files& files = environment_->files();
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
    const GuestDisk& guest = disk.plan.disk;
    try {
      files.check_readable(guest.base_local);
    } catch (const Error& error) {
      refuse(
          error.error_number(),
          "{}: QEMU has it at {}, which cannot be read here: {}; --path QEMU=LOCAL says where it "
          "is on this machine",
          guest.name, guest.base_path, error.what());
    }
    journal.disks.push_back(journal_disk(disk));
  }
  journal_ = std::move(journal);
  enter(phase::kPrepare);
  files.make_folder(repository().point_folder(journal_->point));
  for (Disk& disk : disks_)
    co_await add_overlay(disk, journal_->disks[disk.index]);
  const qapi::RunState state = co_await qmp_->call(qapi::QueryStatus{});
  if (state.running)
    co_await quiescence_.prepare();
}

asio::awaitable<void> Session::add_overlay(Disk& disk, JournalDisk& entry) {
  const GuestDisk& guest = disk.plan.disk;
  Files& files = environment_->files();
  const bool stacked = !guest.overlays.empty();
  create_overlay(files, entry.overlay_local,
                 stacked ? guest.overlays.front().local : guest.base_local, guest.size,
                 stacked ? guest.overlays.front().path : guest.base_path,
                 stacked ? image::Format::qcow2 : guest.base_format);
  const std::string file_node = file_node_name(plan_.id, disk.index);
  qapi::json::object file{
      {"driver", "file"}, {"node-name", file_node}, {"filename", entry.overlay_path}};
  if (guest.direct)
    file["cache"] = {{"direct", true}};
  const qapi::BlockdevAdd blockdev_add{.driver = "qcow2",
                                       .node_name = entry.overlay_node,
                                       .file = file,
                                       .backing = qapi::json::value(nullptr),
                                       .read_only = std::nullopt,
                                       .discard = "unmap"};
  co_await qmp_->call(blockdev_add);
  const std::uint64_t free_space = files.free_space(folder_of(entry.overlay_local));
  const std::uint64_t threshold = free_space / disks_.size() / 5 * 4;
  if (threshold != 0) {
    const qapi::BlockSetWriteThreshold block_set_write_threshold{.node_name = file_node,
                                                                 .write_threshold = threshold};
    co_await qmp_->call(block_set_write_threshold);
  }
  // Before the switch: the new overlay on the old one reads the same, but not the other way round.
  if (options_->tracking == Tracking::overlay)
    write_current(files, entry.overlay_local, entry.overlay_path, guest.name);
}

/// What happens at the instant that the restore point shows: for all disks, or for none.
std::vector<qapi::TransactionAction> Session::switch_actions() const {
  using qapi::TransactionAction;
  std::vector<TransactionAction> actions;
  const std::string name = bitmap_name(plan_.id);
  for (const Disk& disk : disks_) {
    const GuestDisk& guest = disk.plan.disk;
    if (guest.overlays.empty() && options_->tracking == Tracking::bitmap) {
      if (!disk.plan.bitmap.empty())
        actions.push_back(TransactionAction::of(
            qapi::BlockDirtyBitmapDisable{.node = guest.base_node, .name = disk.plan.bitmap}));
      actions.push_back(
          TransactionAction::of(qapi::BlockDirtyBitmapAdd{.node = guest.base_node,
                                                          .name = name,
                                                          .granularity = std::nullopt,
                                                          .persistent = guest.can_keep_bitmaps,
                                                          .disabled = std::nullopt}));
    } else if (!disk.plan.bitmap.empty() && guest.overlays.empty()) {
      actions.push_back(TransactionAction::of(
          qapi::BlockDirtyBitmapDisable{.node = guest.base_node, .name = disk.plan.bitmap}));
    }
    actions.push_back(TransactionAction::of(qapi::BlockdevSnapshot{
        .node = guest.top, .overlay = overlay_node_name(plan_.id, disk.index)}));
  }
  return actions;
}

/// Nothing but the freeze, one transaction and the thaw happens between the first and the last
/// line of the try block.
asio::awaitable<void> Session::window() {
  enter(phase::kWindow);
  const qapi::Transaction transaction{.actions = switch_actions()};
  repository::Window& window = manifest_.window;
  std::exception_ptr failure;
  try {
    co_await quiescence_.freeze(window);
    window.switch_sent_us = microseconds(environment_->clock().now());
    co_await qmp_->call(transaction, kSwitch);
    window.switch_answered_us = microseconds(environment_->clock().now());
  } catch (...) {
    failure = std::current_exception();
  }
  co_await quiescence_.thaw(window);
  const std::string still_frozen = co_await quiescence_.confirm();
  if (!still_frozen.empty()) {
    warnings_.push_back(fmt::format("the guest may still be frozen: {}", still_frozen));
    reporter_->say(warnings_.back());
  }
  if (failure)
    std::rethrow_exception(failure);
  quiescence_.record(manifest_);
  if (!quiescence_.failure().empty()) {
    warnings_.push_back(fmt::format("the file systems were not frozen: {}", quiescence_.failure()));
    reporter_->say(warnings_.back());
    if (options_->quiesce == Quiesce::require)
      fail(EIO, "a freeze was required");
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

/// Brings the disk to the shape that its map can be read in, where earlier overlays are in place:
/// the guest writes to the new one only.
asio::awaitable<void> Session::absorb(Disk& disk) {
  GuestDisk& guest = disk.plan.disk;
  std::vector<StackedOverlay>& overlays = guest.overlays;
  const std::string node = overlay_node_name(plan_.id, disk.index);
  const std::string job = node + "-b";
  const bool into_base = disk.plan.map == MapSource::absorbed ||
                         (disk.plan.map == MapSource::none && !overlays.empty());
  if (into_base) {
    co_await commit_below(*qmp_, job, node, overlays.front().node_name, guest.base_node,
                          guest.base_path);
  } else if (disk.plan.map == MapSource::layer && overlays.size() > 1) {
    co_await commit_below(*qmp_, job, node, overlays.front().node_name, overlays.back().node_name,
                          overlays.back().path);
  } else {
    co_return;
  }
  const std::size_t stay = into_base ? 0 : 1;
  while (overlays.size() > stay) {
    const StackedOverlay& merged = overlays.front();
    try {
      const qapi::BlockdevDel blockdev_del{.node_name = merged.node_name};
      co_await qmp_->call(blockdev_del);
    } catch (const qapi::CommandError&) {  // it went with the commit
    }
    remove_overlay(environment_->files(), merged.local, guest.base_local);
    overlays.erase(overlays.begin());
  }
  if (into_base)
    co_await make_base_read_only(guest);
  if (disk.plan.map != MapSource::absorbed)
    co_return;
  // The base does not change now, so these need not be one step.
  const std::string map = bitmap_name(plan_.id) + "-map";
  std::vector<std::string> parts;
  for (const qapi::BitmapInfo& bitmap : guest.bitmaps) {
    const auto session = session_of(bitmap.name);
    if (session && session->chain == plan_.id.chain && bitmap.name >= disk.plan.bitmap)
      parts.push_back(bitmap.name);
  }
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

/// A commit that was cancelled leaves the base writable in QEMU (7.2), which thereby holds a lock
/// that our plugin must not pass over.
asio::awaitable<void> Session::make_base_read_only(GuestDisk disk) {
  const qapi::QueryNamedBlockNodes query{.flat = true};
  const auto nodes = co_await qmp_->call(query);
  const bool writable = std::any_of(nodes.begin(), nodes.end(), [&](const qapi::NodeInfo& node) {
    return node.node_name == disk.base_node && !node.read_only;
  });
  if (!writable)
    co_return;
  qapi::json::object options{{"driver", disk.base_format == image::Format::raw ? "raw" : "qcow2"},
                             {"node-name", disk.base_node},
                             {"file", disk.base_file_node},
                             {"read-only", true},
                             {"discard", "unmap"},
                             {"detect-zeroes", disk.detect_zeroes}};
  if (disk.direct)
    options["cache"] = {{"direct", true}};
  qapi::BlockdevReopen reopen;
  reopen.options.push_back(std::move(options));
  co_await qmp_->call(reopen);
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

/// Nobody can be left reading QEMU's export when the base is committed into.
asio::awaitable<void> Session::drop_map(Disk& disk, std::string id) {
  const qapi::BlockExportDel block_export_del{.id = id};
  co_await qmp_->call(block_export_del);
  if (disk.plan.map == MapSource::absorbed) {
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

asio::awaitable<void> Session::start_server(Disk& disk) {
  const GuestDisk& guest = disk.plan.disk;
  const bool layer = disk.plan.map == MapSource::layer;
  ServeRequest request;
  request.image = layer ? guest.overlays.back().local : guest.base_local;
  request.format = layer ? image::Format::qcow2 : guest.base_format;
  if (!layer)
    for (const std::string& below : guest.below_base)
      request.backing.push_back(folder_of(below));
  request.name = overlay_node_name(plan_.id, disk.index);
  request.lifetime = options_->external ? Lifetime::ended : Lifetime::session;
  request.listen = options_->listen;
  if (!request.listen.socket.empty())
    request.listen.socket += fmt::format("/{}-{}.sock", bitmap_name(plan_.id), guest.name);
  else if (request.listen.port != 0)
    request.listen.port = static_cast<std::uint16_t>(request.listen.port + disk.index);
  std::string id;
  if (!disk.map_bitmap.empty() && !disk.server) {
    id = co_await export_map(disk);
    request.map = fmt::format("nbd+unix:///{}?socket={}", id, map_socket(*journal_));
    request.map_context = "qemu:dirty-bitmap:" + disk.map_bitmap;
  }
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

/// Never ends by itself.
asio::awaitable<void> Session::watch_events() {
  bool lost = false;
  while (!lost) {
    try {
      const qapi::Event event = co_await qmp_->next_event();
      if (event.name == "BLOCK_WRITE_THRESHOLD")
        warn_of_threshold(event);
      else if (event.name == "SHUTDOWN")
        reporter_->say("the guest has shut down; what was frozen is still being copied");
    } catch (const qmp::ChannelLost&) {
      lost = true;
    }
  }
  while (true)
    co_await environment_->clock().wait(1h);
}

void Session::warn_of_threshold(const qapi::Event& event) {
  const auto data = qapi::event_data<qapi::BlockWriteThresholdEvent>(event);
  for (const JournalDisk& disk : journal_->disks)
    if (data.node_name == file_node_name(plan_.id, disk.index)) {
      warnings_.push_back(fmt::format(
          "{}: the overlay {} has grown beyond {}, four fifths of what was free: make room, or the "
          "guest will stop when the storage is full",
          disk.name, disk.overlay_local, format_size(data.write_threshold)));
      reporter_->say(warnings_.back());
    }
}

asio::awaitable<Settled> Session::settle() {
  for (Disk& disk : disks_)
    if (disk.server)
      disk.server->stop();
  std::optional<Repository> points;
  if (!options_->folder.empty())
    points.emplace(repository());
  Settler settler(*environment_, *qmp_, options_->paths, options_->commit_deadline,
                  points ? &*points : nullptr);
  co_return co_await settler.settle(journal_);
}

/// QEMU may have dropped the connection and yet be there.
asio::awaitable<void> Session::reconnect() {
  qmp_.reset();
  qmp_ = std::make_unique<qmp::Client>(co_await environment_->connect_qmp(options_->qmp),
                                       environment_->clock());
  co_await qmp_->open();
}

/// Returns what came of it, for the message about the failure.
asio::awaitable<std::string> Session::settle_after_failure() {
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      if (attempt != 0)
        co_await reconnect();
      repository().remove_unfinished();
      const Settled settled = co_await settle();
      if (!settled.problems.empty())
        co_return settled.problems.front();
      co_return settled.overlay_kept
          ? "an overlay stays in place; the next backup or 'nbdelta recover' goes on with it"
          : "the guest runs as before, and the next backup has what this one would have had";
    } catch (const Error& error) {
      if (attempt != 0)
        co_return fmt::format(
            "QEMU cannot be asked to put things right ({}): run 'nbdelta recover', with --offline "
            "for each disk if the guest has ended",
            error.what());
    }
  }
  co_return std::string();
}

asio::awaitable<void> Session::run_to_export() {
  co_await open_session();
  std::exception_ptr failure;
  try {
    co_await prepare();
    check_stop();
    co_await window();
    co_await export_all();
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure)
    co_await fail_session(failure);
}

/// Puts things right, then throws what went wrong together with what came of that.
asio::awaitable<void> Session::fail_session(std::exception_ptr failure) {
  std::string after = "nothing was touched";
  if (journal_)
    after = co_await settle_after_failure();
  try {
    std::rethrow_exception(failure);
  } catch (const Refused& error) {
    throw Refused(error.error_number(), error.what() + ("; " + after));
  } catch (const Error& error) {
    fail(error.error_number(), "{}; {}", error.what(), after);
  }
}

asio::awaitable<Report> Session::backup() {
  co_await run_to_export();
  std::exception_ptr failure;
  try {
    co_await either(pull_all(), watch_events());
    check_stop();
    for (Disk& disk : disks_)
      manifest_.disks.push_back(disk.entry);
    repository().publish(journal_->point, manifest_);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure)
    co_await fail_session(failure);

  Report report{.manifest = manifest_, .point = journal_->point, .warnings = {}};
  enter(phase::kCommit);
  std::string trouble;
  try {
    const Settled settled = co_await settle();
    report.overlay_kept = settled.overlay_kept;
    if (!settled.problems.empty())
      trouble = settled.problems.front();
    if (settled.overlay_kept)
      for (const std::string& done : settled.done)
        reporter_->say(done);
  } catch (const Error& error) {
    trouble = error.what();
  }
  if (!trouble.empty())
    fail(EIO,
         "restore point {} is complete, but the guest could not be put back as it was: {}; run "
         "'nbdelta recover', with --offline for each disk if the guest has ended",
         report.point, trouble);
  report.warnings = warnings_;
  co_return report;
}

asio::awaitable<std::vector<Exported>> Session::begin() {
  co_await run_to_export();
  for (Disk& disk : disks_)
    manifest_.disks.push_back(disk.entry);
  journal_->manifest = manifest_;
  save_journal();
  std::vector<Exported> exports;
  for (Disk& disk : disks_) {
    exports.push_back({.disk = disk.entry.name,
                       .type = disk.entry.type,
                       .size = disk.entry.size,
                       .uri = disk.uri});
  }
  co_return exports;
}

asio::awaitable<Settled> Session::end(Outcome outcome) {
  Repository points = repository();
  lock_ = points.lock();
  journal_ = read_journal(environment_->files(), options_->folder);
  if (!journal_ || !journal_->external)
    refuse(ENOENT, "{}: no session of external software is open", options_->folder);
  if (journal_->phase == phase::kExport && !journal_->manifest)
    refuse(EBUSY, "the session did not get to its exports: run 'nbdelta recover'");
  co_await connect();
  if (journal_->phase == phase::kExport) {
    if (outcome == Outcome::success) {
      points.publish(journal_->point, *journal_->manifest);
      enter(phase::kCommit);
    } else {
      points.remove_unfinished();
    }
  }
  co_return co_await settle();
}

asio::awaitable<Settled> Session::recover() {
  Settled settled;
  if (!options_->folder.empty()) {
    lock_ = repository().lock();
    journal_ = read_journal(environment_->files(), options_->folder);
  }
  co_await connect();
  std::vector<std::string> first;
  std::string agent_trouble;
  if (options_->agent) {
    try {
      const std::int64_t thawed = co_await quiescence_.release();
      if (thawed > 0)
        first.push_back(fmt::format("thawed {} file systems of the guest", thawed));
    } catch (const Error& error) {
      agent_trouble = fmt::format("whether the guest is frozen cannot be told: {}", error.what());
    }
  }
  if (!options_->folder.empty())
    repository().remove_unfinished();
  settled = co_await settle();
  settled.done.insert(settled.done.begin(), first.begin(), first.end());
  if (!agent_trouble.empty())
    settled.problems.push_back(agent_trouble);
  co_return settled;
}

}  // namespace nbdelta::client::backup
