#include "client/backup/offline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "client/backup/names.hpp"
#include "client/backup/overlay_files.hpp"

namespace nbdelta::client::backup {
namespace {

/// Between two clocks and a journal that was written just before.
constexpr std::int64_t kMargin_s = 10;

bool is_of(const std::optional<Journal>& journal, const std::string& overlay) {
  return journal &&
         std::any_of(journal->disks.begin(), journal->disks.end(),
                     [&](const JournalDisk& disk) { return disk.overlay_local == overlay; });
}

/// Whether the session ran on the overlay, if perhaps on another one over it, which may have gone:
/// its commit goes down to the base.
bool ran_on(const std::optional<Journal>& journal, const std::string& base,
            const std::string& overlay) {
  const auto session = session_of(base_name(overlay));
  return journal && session && session->chain == journal->chain &&
         session->number <= journal->number &&
         std::any_of(journal->disks.begin(), journal->disks.end(),
                     [&](const JournalDisk& disk) { return disk.base_local == base; });
}

/// Whether the base was written to later than the overlays that lie over it, lowest first, though
/// no session that may have done so is known: one that had begun to commit. Must be asked before a
/// commit, which writes to what is below.
bool is_newer_without_reason(Files& files, const std::string& base,
                             const std::vector<std::string>& overlays,
                             const std::optional<Journal>& journal) {
  if (overlays.empty())
    return false;
  // By a recover --offline that was interrupted.
  std::optional<std::int64_t> written = committing_since(files, overlays.front());
  for (const std::string& overlay : overlays) {
    if (files.overlay_is_empty(overlay))
      continue;  // nothing of it can be put over what is newer
    const bool of_session = is_of(journal, overlay);
    if ((of_session || ran_on(journal, base, overlay)) &&
        (journal->phase == phase::kAbsorb || journal->phase == phase::kCommit ||
         journal->phase == phase::kKept))
      return false;
    if (of_session) {
      written = std::max(written.value_or(0), journal->since);
    }
    written = std::max(written.value_or(0), files.modified(overlay));
  }
  return written && files.modified_below(overlays.front()) > *written + kMargin_s;
}

/// Beside a block device nothing lasts that says where its overlays are; the session knows.
std::string folder_of_overlays(const std::optional<Journal>& journal, const std::string& base,
                               const std::string& overlay_dir) {
  if (overlay_dir.empty() && journal)
    for (const JournalDisk& disk : journal->disks)
      if (disk.base_local == base)
        return folder_of(disk.overlay_local);
  return overlay_dir;
}

/// Whether an overlay took the place of another one that lies elsewhere: it is over the base, and
/// later.
bool took_the_place(Files& files, const std::string& later, const std::string& overlay) {
  const auto first = session_of(base_name(overlay));
  const auto second = session_of(base_name(later));
  return first && second && first->chain == second->chain && first->number < second->number &&
         files.modified(overlay) <= files.modified(later);
}

/// Overlays that were committed and have not gone, the newest first: those that lie over one of the
/// images that count, and those over them in turn, whose header may still name what was committed
/// below them. Throws Error (ESTALE) where one of these may count. `overlays`: that count.
std::vector<std::string> without_effect(Files& files, const std::set<std::string>& images,
                                        const std::vector<std::string>& overlays) {
  std::set<std::string> found;
  std::vector<std::string> left(images.begin(), images.end());
  while (!left.empty()) {
    const std::string below = left.back();
    left.pop_back();
    for (const std::string& overlay : overlays_directly_over(files, below)) {
      if (images.count(overlay) || !found.insert(overlay).second)
        continue;
      if (!images.count(below) && !is_committed(files, overlay) &&
          (overlays.empty() || !took_the_place(files, overlays.back(), overlay)))
        fail(ESTALE,
             "{0} lies over {1}, which was committed. Where the guest ran on it last, 'qemu-img "
             "rebase -u -b IMAGE -F FORMAT {0}' with the image below {1} puts that right; "
             "otherwise remove it",
             overlay, below);
      left.push_back(overlay);
    }
  }
  std::vector<std::string> newest_first(found.begin(), found.end());
  std::sort(newest_first.begin(), newest_first.end(), [](const auto& a, const auto& b) {
    return session_of(base_name(a))->number > session_of(base_name(b))->number;
  });
  return newest_first;
}

/// Why the overlays, lowest first, cannot be committed, and what to do; empty where they can.
/// Removes what is of no use to anybody and would keep the base from growing.
std::string clear_the_way(Environment& environment, const std::string& base,
                          const std::vector<std::string>& overlays) {
  Files& files = environment.files();
  std::uint64_t size = 0;
  bool base_is_qcow2 = false;  // what a raw one begins with is the guest's
  for (const std::string& overlay : overlays) {
    const std::optional<Qcow2Summary> summary = files.summary_of(overlay);
    if (!summary)
      continue;
    if (summary->snapshots != 0)
      return fmt::format(
          "{0}: holds snapshots of the guest that would go with it ({1}), so nothing is committed: "
          "start the guest on it to use them, or remove them ('qemu-img snapshot -l {0}' shows "
          "them, 'qemu-img snapshot -d NAME {0}' removes one), then run this again",
          overlay, summary->snapshots);
    if (overlay == overlays.front())
      base_is_qcow2 = summary->backing_format == "qcow2";
    size = std::max(size, summary->size);
  }
  if (!base_is_qcow2)
    return {};
  const std::optional<Qcow2Summary> summary = files.summary_of(base);
  if (!summary || size <= summary->size)
    return {};
  for (const std::string& bitmap : summary->inconsistent_bitmaps)
    if (!session_of(bitmap))
      return fmt::format(
          "{0}: has an inconsistent bitmap of other software ({1}), and the disk was made larger: "
          "nothing can be committed into such an image. 'qemu-img bitmap --remove {0} {1}', then "
          "run this again",
          base, bitmap);
  for (const std::string& bitmap : summary->inconsistent_bitmaps)
    environment.remove_bitmap_offline(base, bitmap);
  return {};
}

}  // namespace

Settled recover_offline(Environment& environment, const std::string& image,
                        std::optional<Journal>& journal, const std::string& overlay_dir) {
  Files& files = environment.files();
  const std::string base = files.canonical(image);
  files.check_readable(base);
  const std::string overlay_folder = folder_of_overlays(journal, base, overlay_dir);
  if (overlay_folder.empty() && files.modified(base) == 0)
    fail(EINVAL, "{}: is a block device: say with --overlay-dir where its overlays would be", base);
  Settled settled;
  std::vector<std::string> overlays = overlays_over(files, base, overlay_folder);
  if (!overlays.empty())
    files.check_unused(overlays.back());  // where the guest runs nothing is touched
  std::set<std::string> images(overlays.begin(), overlays.end());
  images.insert(base);
  environment.end_servers(images, [](const SessionId&) { return true; });
  environment.remove_temporary([&](const SessionId& id) {
    return (journal && journal->chain == id.chain) ||
           std::any_of(overlays.begin(), overlays.end(), [&](const std::string& overlay) {
             return session_of(base_name(overlay)) == id;
           });
  });
  if (is_newer_without_reason(files, base, overlays, journal)) {
    settled.problems.push_back(fmt::format(
        "{}: was written to later than {}, and no session is known that says why: the guest may "
        "have been started without it. Both are left as they are. Name the repository (--vm, "
        "--to) where there is one; where the overlay is right, 'qemu-img commit {}', then remove "
        "it",
        base, overlays.back(), overlays.back()));
    return settled;
  }
  if (std::string why = clear_the_way(environment, base, overlays); !why.empty()) {
    settled.problems.push_back(std::move(why));
    return settled;
  }
  const std::string lowest = base_below(files, base);
  const auto remove_committed = [&](const std::string& overlay) {
    files.check_unused(overlay);
    remove_overlay(files, overlay, lowest);
    settled.done.push_back(fmt::format("removed {}: it had been committed", overlay));
  };
  // Before anything else: alone, one that was committed would look like the last one.
  for (const std::string& overlay : without_effect(files, images, overlays))
    remove_committed(overlay);
  for (const std::string& overlay : overlays_beside(files, lowest))
    if (!files.exists(overlay))  // but its mark is there
      remove_overlay(files, overlay, lowest);
    else if (base == lowest && is_committed(files, overlay) &&
             base_of(files, overlay) == base_name(base))
      remove_committed(overlay);  // it lies over one in another folder
  for (; !overlays.empty(); overlays.pop_back()) {
    const std::string& top = overlays.back();
    if (overlays.size() == 1) {
      files.check_unused(base);
      mark_committing(files, top);
    }
    // An empty one too: its QEMU may not have written its tables yet, and has it locked.
    environment.commit_offline(top);
    settled.done.push_back(fmt::format("committed {} into {}", top,
                                       overlays.size() > 1 ? overlays[overlays.size() - 2] : base));
    if (overlays.size() > 1)
      move_current(files, top, overlays[overlays.size() - 2]);
    remove_overlay(files, top, lowest);
    settled.done.push_back(fmt::format("removed {}", top));
  }
  return settled;
}

}  // namespace nbdelta::client::backup
