#include "client/backup/plan.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/units.hpp"
#include "client/backup/bitmap_parts.hpp"
#include "client/backup/breaks.hpp"
#include "client/backup/obstacles.hpp"

namespace nbdelta::client::backup {
namespace {

using repository::DiskEntry;

bool is_selected(const GuestDisk& disk, const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return disk.is_called(name); });
}

void check_names(const std::vector<std::string>& names, const Inventory& inventory,
                 std::string_view option) {
  for (const std::string& name : names) {
    if (std::any_of(inventory.disks.begin(), inventory.disks.end(),
                    [&](const GuestDisk& disk) { return disk.is_called(name); }))
      continue;
    const auto left_out = std::find_if(inventory.left_out.begin(), inventory.left_out.end(),
                                       [&](const LeftOut& each) { return each.name == name; });
    if (left_out != inventory.left_out.end() && option == "--exclude")
      continue;
    if (left_out != inventory.left_out.end())
      refuse(EINVAL, "{} {}: cannot be backed up: {}", option, name, left_out->reason);
    std::vector<std::string> known;
    for (const GuestDisk& disk : inventory.disks)
      known.push_back(disk.name);
    refuse(ENOENT, "{} {}: the guest has no such disk; it has {}", option, name,
           known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", ")));
  }
}

const qapi::BitmapInfo* find_bitmap(const GuestDisk& disk, const std::string& name) {
  for (const qapi::BitmapInfo& bitmap : disk.bitmaps)
    if (bitmap.name == name)
      return &bitmap;
  return nullptr;
}

/// Uses the last restore point's bitmap; says why it cannot be used, or nothing.
std::string use_bitmap(DiskPlan& plan, const SessionId& last, const Situation& situation,
                       const Options& options) {
  const std::string name = bitmap_name(last);
  const qapi::BitmapInfo* bitmap = find_bitmap(plan.disk, name);
  const std::vector<std::string>& gaps = situation.gaps;
  if (std::find(gaps.begin(), gaps.end(), plan.disk.name) != gaps.end())
    return fmt::format("its bitmap {} was disabled and has a gap", name);
  if (bitmap == nullptr)
    return fmt::format(
        "its bitmap {} is missing{}", name,
        plan.disk.can_keep_bitmaps
            ? " (another image, or somebody removed it)"
            : " (QEMU was restarted: it keeps bitmaps of such images in memory only)");
  if (bitmap->inconsistent.value_or(false) && !broken("inconsistent-bitmap-used"))
    return fmt::format("its bitmap {} is inconsistent (QEMU did not end well)", name);
  if (bitmap->busy)
    return fmt::format("its bitmap {} is in use by somebody else", name);
  // Below an overlay that a session left in place it may be so, see absorb().
  const bool goes_on =
      plan.disk.overlays.empty() ? bitmap->recording : is_complete(*bitmap, plan.disk.bitmaps);
  if (!goes_on && !broken("inconsistent-bitmap-used"))
    return fmt::format("its bitmap {} is disabled", name);
  const bool in_image = plan.disk.overlays.empty() && bitmap->persistent;
  if (!in_image && !options.qmp.starts_with('/'))
    return fmt::format("its bitmap {} can be read from QEMU only, and QMP is no Unix socket here",
                       name);
  if (!in_image && situation.exports_abort_qemu)
    return fmt::format(
        "its bitmap {} can be read from QEMU only, and a QEMU before 9.0 with iothreads aborts "
        "when "
        "its NBD server is left; --tracking overlay needs none",
        name);
  plan.bitmap = name;
  if (!plan.disk.overlays.empty())
    plan.map = MapSource::absorbed;
  else
    plan.map = bitmap->persistent ? MapSource::image : MapSource::qemu;
  return {};
}

/// Uses what the last session's overlay holds; likewise.
std::string use_layer(DiskPlan& plan, const SessionId& last) {
  if (plan.disk.overlays.empty())
    return fmt::format("it does not run on the overlay of restore point {}", last.number);
  const SessionId& lowest = plan.disk.overlays.back().session;
  if (lowest != last)
    return fmt::format("its lowest overlay is of session {}, not of restore point {}",
                       lowest.number, last.number);
  plan.map = MapSource::layer;
  return {};
}

/// In bytes where the texts for people would be the same.
std::string size_change(std::uint64_t before, std::uint64_t now) {
  const std::string text = format_size(before);
  if (text != format_size(now))
    return fmt::format("its size was {} and is {}", text, format_size(now));
  return fmt::format("its size was {} bytes and is {}", before, now);
}

/// Says why nothing can be built on a disk's last file, or nothing.
std::string check_chain(const PreviousFile& previous) {
  if (!previous.trouble.empty())
    return previous.trouble;
  if (previous.chain >= kLongestChain)
    return fmt::format("its chain has {} restore points: with many more, no tool could open it",
                       previous.chain);
  return {};
}

std::string use_previous(DiskPlan& plan, const Situation& situation, const Options& options) {
  const DiskEntry& previous = *plan.previous;
  const repository::Manifest& latest = *situation.latest;
  if (options.full)
    return "asked for";
  if (latest.external != options.external)
    return latest.external ? "the last restore point is external software's"
                           : "the last restore point is not external software's";
  if (!options.external)
    if (std::string reason = check_chain(situation.previous_file(previous)); !reason.empty())
      return reason;
  if (previous.size != plan.disk.size)
    return size_change(previous.size, plan.disk.size);
  if (previous.origin.path != plan.disk.base_path)
    return fmt::format("its image was {} and is {}", previous.origin.path, plan.disk.base_path);
  const SessionId last{latest.chain, latest.number};
  return previous.tracking == repository::kByOverlay ? use_layer(plan, last)
                                                     : use_bitmap(plan, last, situation, options);
}

void check_stack(const GuestDisk& disk, const std::string& chain) {
  // As where what is put right is not known by its repository.
  const bool by_bitmap =
      std::any_of(disk.bitmaps.begin(), disk.bitmaps.end(),
                  [](const qapi::BitmapInfo& bitmap) { return session_of(bitmap.name); });
  for (const StackedOverlay& overlay : disk.overlays) {
    if (overlay.session.chain == chain)
      continue;
    if (by_bitmap)
      refuse(EBUSY,
             "{}: an overlay of another backup is in place ({}): end that session, or put it right "
             "with 'nbdelta recover'",
             disk.name, overlay.path);
    refuse(EBUSY,
           "{}: an overlay of another backup is in place ({}), to stay there perhaps (--tracking "
           "overlay): then a backup to that repository with --tracking bitmap takes it off; else "
           "end that session, or put it right with 'nbdelta recover' and its --vm and --to",
           disk.name, overlay.path);
  }
}

/// The session would commit the overlay, at its beginning or end, and could not; and QEMU deletes
/// snapshots in what the guest writes to only, which it would be no more.
void check_snapshots(const GuestDisk& disk) {
  for (const StackedOverlay& overlay : disk.overlays)
    if (const std::string why = snapshots_in(overlay.path, overlay.snapshots); !why.empty())
      refuse(EBUSY, "{}: {}, then back up again", disk.name, why);
}

/// Above every number that was used before.
std::uint32_t next_number(const Situation& situation, const std::string& chain) {
  std::uint32_t highest = situation.highest_number;
  if (situation.latest)
    highest = std::max(highest, situation.latest->number);
  const auto see = [&](const std::optional<SessionId>& session) {
    if (session && session->chain == chain)
      highest = std::max(highest, session->number);
  };
  for (const GuestDisk& disk : situation.inventory.disks) {
    for (const StackedOverlay& overlay : disk.overlays)
      see(overlay.session);
    for (const qapi::BitmapInfo& bitmap : disk.bitmaps)
      see(session_of(bitmap.name));
  }
  return highest + 1;
}

void note_missing(Plan& plan, const repository::Manifest& latest) {
  for (const DiskEntry& entry : latest.disks) {
    const auto same = [&](const DiskPlan& disk) { return disk.disk.name == entry.name; };
    if (std::none_of(plan.disks.begin(), plan.disks.end(), same))
      plan.notes.push_back(fmt::format("{}: was in restore point {}, is not in this one",
                                       entry.name, latest.number));
  }
}

}  // namespace

std::string_view Plan::type() const {
  const bool full =
      std::all_of(disks.begin(), disks.end(), [](const DiskPlan& disk) { return disk.full(); });
  return full ? repository::kFull : repository::kIncremental;
}

bool another_copy_has_gone_on(const Inventory& inventory, const repository::Manifest& latest) {
  for (const GuestDisk& disk : inventory.disks)
    for (const qapi::BitmapInfo& bitmap : disk.bitmaps) {
      const auto session = session_of(bitmap.name);
      if (session && session->chain == latest.chain && session->number > latest.number)
        return true;
    }
  return false;
}

Plan make_plan(const Situation& situation, const Options& options) {
  const Inventory& inventory = situation.inventory;
  check_names(options.disks, inventory, "--disk");
  check_names(options.exclude, inventory, "--exclude");
  Plan plan;
  const bool copied = !situation.session_is_open && situation.latest &&
                      another_copy_has_gone_on(inventory, *situation.latest);
  plan.id.chain = situation.latest && !copied ? situation.latest->chain : situation.new_chain;
  if (copied)
    plan.notes.push_back(
        "another copy of this repository has gone on with this guest: a new chain begins here");
  for (const LeftOut& left_out : inventory.left_out) {
    const bool excluded = std::find(options.exclude.begin(), options.exclude.end(),
                                    left_out.name) != options.exclude.end();
    if (left_out.by_nature || excluded || !options.disks.empty())
      continue;
    refuse(ENOTSUP, "{}: cannot be backed up: {}; leave it out with --exclude {}", left_out.name,
           left_out.reason, left_out.name);
  }
  for (const GuestDisk& disk : inventory.disks) {
    if ((!options.disks.empty() && !is_selected(disk, options.disks)) ||
        is_selected(disk, options.exclude))
      continue;
    check_stack(disk, plan.id.chain);
    check_snapshots(disk);
    if (const std::string why = obstacle_in(disk); !why.empty()) {
      if (has_grown(disk) || options.tracking == Tracking::overlay)
        refuse(EBUSY, "{}: {}", disk.name, why);
      plan.notes.push_back(fmt::format("{}: {}", disk.name, why));  // for a short while only
    }
    DiskPlan disk_plan;
    disk_plan.disk = disk;
    const DiskEntry* previous = situation.latest ? situation.latest->find(disk.name) : nullptr;
    if (situation.latest && previous == nullptr && broken("new-disk-left-out"))
      continue;
    if (previous != nullptr) {
      disk_plan.previous = *previous;
      const std::string reason = copied ? "another copy of this repository has gone on with it"
                                        : use_previous(disk_plan, situation, options);
      if (!reason.empty())
        disk_plan.reason = reason;
    } else if (situation.latest) {
      disk_plan.reason = "it is not in the last restore point";
    }
    if (disk_plan.full() && options.require_incremental)
      refuse(ENOENT, "{}: an incremental cannot be made: {}", disk.name,
             disk_plan.reason.value_or("there is no restore point yet"));
    plan.disks.push_back(std::move(disk_plan));
  }
  if (plan.disks.empty())
    refuse(ENOENT, "the guest has no disk to back up");
  plan.id.number = next_number(situation, plan.id.chain);
  if (situation.latest)
    note_missing(plan, *situation.latest);
  return plan;
}

}  // namespace nbdelta::client::backup
