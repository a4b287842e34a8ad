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

enum class Moved : std::uint8_t { no, yes, unknown };

/// Whether the guest had moved from the overlay to the base, when `entry` says that this was about
/// to happen at `since`.
Moved moved_to_base(Files& files, const std::string& overlay, const std::string& base,
                    std::int64_t since) {
  const std::int64_t overlay_written = files.modified(overlay);
  const std::int64_t base_written = files.modified(base);
  const bool overlay_later = overlay_written > since + kMargin_s;
  const bool base_later = base_written > since + kMargin_s;
  if (overlay_later == base_later)
    return Moved::unknown;
  return overlay_later ? Moved::no : Moved::yes;
}

const JournalDisk* find_entry(const std::optional<Journal>& journal, const std::string& overlay) {
  if (journal)
    for (const JournalDisk& disk : journal->disks)
      if (disk.overlay_local == overlay)
        return &disk;
  return nullptr;
}

/// Whether the base was written to later than all that lies over it, though no session that may
/// have done so is known: one that had begun to commit. Must be asked before a commit, which writes
/// to what is below.
bool is_newer_without_reason(Files& files, const std::string& base,
                             const std::vector<std::string>& overlays,
                             const std::optional<Journal>& journal) {
  std::optional<std::int64_t> written;
  for (const std::string& overlay : overlays) {
    if (const JournalDisk* entry = find_entry(journal, overlay)) {
      if (entry->completing || entry->committed || journal->phase == phase::kCommit ||
          journal->phase == phase::kKept)
        return false;
      written = std::max(written.value_or(0), journal->since);
    }
    if (!files.overlay_is_empty(overlay))
      written = std::max(written.value_or(0), files.modified(overlay));
  }
  return written && files.modified(base) > *written + kMargin_s;
}

}  // namespace

Settled recover_offline(Environment& environment, const std::string& image,
                        std::optional<Journal>& journal, const std::string& overlay_dir) {
  Files& files = environment.files();
  const std::string base = files.canonical(image);
  files.check_readable(base);
  Settled settled;
  std::vector<std::string> overlays = overlays_over(files, base, overlay_dir);
  std::set<std::string> images(overlays.begin(), overlays.end());
  images.insert(base);
  environment.end_servers(images, [](const SessionId&) { return true; });
  if (is_newer_without_reason(files, base, overlays, journal)) {
    settled.problems.push_back(fmt::format(
        "{}: was written to later than {}, and no session is known that says why: the guest may "
        "have been started without it. Both are left as they are. Name the repository (--vm, "
        "--to) where there is one; where the overlay is right, 'qemu-img commit {}', then remove "
        "it",
        base, overlays.back(), overlays.back()));
    return settled;
  }
  for (const std::string& below : images)
    for (const std::string& overlay : overlays_directly_over(files, below))
      if (!images.count(overlay)) {  // before anything else: alone, it would look like the last one
        remove_overlay(files, overlay, base);
        settled.done.push_back(fmt::format("removed {}: it had been committed", overlay));
      }
  for (; !overlays.empty(); overlays.pop_back()) {
    const std::string& top = overlays.back();
    const std::string& below = overlays.size() > 1 ? overlays[overlays.size() - 2] : base;
    const JournalDisk* entry = find_entry(journal, top);
    bool committed = entry != nullptr && entry->committed;
    if (entry != nullptr && entry->completing && !files.overlay_is_empty(top)) {
      const Moved moved = moved_to_base(files, top, base, journal->since);
      if (moved == Moved::unknown && !environment.reads_as_below(top)) {
        settled.problems.push_back(fmt::format(
            "{}: the session and QEMU died while the guest was moved from {} to its base; they "
            "differ, and which of them is newer cannot be told. Both are left as they are. Compare "
            "them ('qemu-img compare {} {}'); where the overlay is right, 'qemu-img commit {}', "
            "then remove it",
            base, top, top, below, top));
        return settled;
      }
      committed = moved == Moved::yes;
    }
    if (committed) {
      settled.done.push_back(fmt::format("{}: had been committed", top));
    } else {  // an empty one too: its QEMU may not have written its tables yet, and has it locked
      environment.commit_offline(top);
      settled.done.push_back(fmt::format("committed {} into {}", top, below));
    }
    remove_overlay(files, top, base);
    settled.done.push_back(fmt::format("removed {}", top));
  }
  return settled;
}

}  // namespace nbdelta::client::backup
