#include "client/backup/overlay_files.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "client/backup/breaks.hpp"
#include "client/backup/names.hpp"

namespace nbdelta::client::backup {
namespace {

constexpr std::string_view kPointer = ".at";
constexpr std::string_view kUncommitted = ".uncommitted";
constexpr std::string_view kCommitted = ".committed";
constexpr std::string_view kCommitting = ".committing";
constexpr std::size_t kMostOverlays = 256;
constexpr std::string_view kCurrent = "nbdelta-current-";

std::string pointer_path(const std::string& overlay, const std::string& base) {
  return fmt::format("{}/{}{}", folder_of(base), base_name(overlay), kPointer);
}

std::string first_line(Files& files, const std::string& path) {
  const std::string text = files.read_text(path).value_or("");
  return text.substr(0, text.find('\n'));
}

std::string second_line(const std::string& text) {
  const std::size_t begin = text.find('\n');
  if (begin == std::string::npos)
    return std::string();
  return text.substr(begin + 1, text.find('\n', begin + 1) - begin - 1);
}

std::string mark_path(const std::string& overlay, std::string_view kind) {
  return overlay + std::string(kind);
}

/// The mark that an overlay bears, or could bear: its own name, since nothing else of that file
/// name counts, and the file name of its base.
std::string text_of_mark(const std::string& overlay, std::string_view base) {
  return fmt::format("{}\n{}\n", base_name(overlay), base_name(base));
}

bool bears(Files& files, const std::string& overlay, std::string_view kind) {
  return first_line(files, mark_path(overlay, kind)) == base_name(overlay);
}

/// What follows chain and number in an overlay's name.
std::string disk_of(const std::string& overlay) {
  const SessionId id = session_of(base_name(overlay)).value_or(SessionId());
  return std::string(base_name(overlay)).substr(bitmap_name(id).size() + 1);
}

/// An overlay has one mark, which is made with it and renamed: that needs no space.
void change_mark(Files& files, const std::string& overlay, std::string_view kind) {
  for (const std::string_view each : {kUncommitted, kCommitting, kCommitted})
    if (each != kind && bears(files, overlay, each)) {
      files.rename(mark_path(overlay, each), mark_path(overlay, kind));
      return;
    }
  if (!bears(files, overlay, kind))
    files.write_text(mark_path(overlay, kind), text_of_mark(overlay, ""));
}

/// Whether an overlay may be one of an image, by the file names of their bases, where they are
/// known: one guest's trouble is none of another's who has an image in the same folder.
bool may_concern(const std::string& base, const std::string& wanted) {
  return base.empty() || wanted.empty() || base == wanted;
}

/// Every overlay that a folder holds or points to, or that has left its mark there. `wanted`: the
/// file name of the base that they are looked for.
std::set<std::string> candidates(Files& files, const std::string& folder,
                                 const std::string& wanted) {
  std::set<std::string> found;
  for (const std::string& name : files.list(folder)) {
    if (!session_of(name))
      continue;
    if (name.ends_with(".qcow2")) {
      found.insert(files.canonical(folder + "/" + name));
    } else if (name.ends_with(kCommitted)) {
      const std::string overlay = name.substr(0, name.size() - kCommitted.size());
      found.insert(files.canonical(folder) + "/" + overlay);
    } else if (name.ends_with(kPointer)) {
      const std::string text = files.read_text(folder + "/" + name).value_or("");
      const std::string target = text.substr(0, text.find('\n'));
      if (!target.empty() && (files.exists(target) || is_committed(files, target)))
        found.insert(files.canonical(target));
      else if (may_concern(second_line(text), wanted))
        fail(ENOENT,
             "{}/{} points to the overlay '{}', which is not there: is its storage mounted?",
             folder, name, target);
    }
  }
  return found;
}

SessionId session(const std::string& overlay) {
  return session_of(base_name(overlay)).value_or(SessionId());
}

/// Its backing file; nothing where that cannot be told of one that is of another image.
std::optional<std::string> backing_for(Files& files, const std::string& overlay,
                                       const std::string& wanted) {
  try {
    return files.backing_of(overlay);
  } catch (const Error&) {
    if (may_concern(base_of(files, overlay), wanted))
      throw;
    return std::nullopt;
  }
}

/// Also where the overlay calls the image by a path of another machine.
bool lies_over(Files& files, const std::string& overlay, const std::string& image,
               const std::string& wanted) {
  const auto backing = backing_for(files, overlay, wanted);
  if (!backing)
    return false;
  return files.same(*backing, image) ||
         (!files.exists(*backing) && base_name(*backing) == base_name(image));
}

/// Those below them too, wherever they are.
void add_what_is_below(Files& files, std::set<std::string>& overlays, const std::string& wanted) {
  std::vector<std::string> left(overlays.begin(), overlays.end());
  while (!left.empty()) {
    const auto backing = backing_for(files, left.back(), wanted);
    left.pop_back();
    if (backing && session_of(base_name(*backing)) && files.exists(*backing) &&
        overlays.insert(*backing).second)
      left.push_back(*backing);
  }
}

/// Throws Error (ENOENT) where an overlay of the image lies over another one that has gone.
/// `overlays`: those that count and were not found over anything.
void check_for_orphans(Files& files, const std::string& wanted,
                       const std::set<std::string>& overlays, const std::set<std::string>& all) {
  for (const std::string& overlay : overlays) {
    const std::string backing = backing_for(files, overlay, wanted).value_or("");
    // On another machine its folder has another name.
    const auto is_it = [&](const std::string& each) {
      return base_name(each) == base_name(backing) && files.exists(each);
    };
    if (session_of(base_name(backing)) && !files.exists(backing) &&
        std::none_of(all.begin(), all.end(), is_it) && may_concern(base_of(files, overlay), wanted))
      fail(ENOENT,
           "{} lies over {}, which is not there. If that was committed (QEMU's host may have "
           "failed before the new header was written), 'qemu-img rebase -u -b IMAGE -F FORMAT {}' "
           "with the image below it puts that right",
           overlay, backing, overlay);
  }
}

/// Those over an image that is no overlay of ours.
std::vector<std::string> overlays_over_base(Files& files, const std::string& start,
                                            const std::string& overlay_dir) {
  const std::string wanted = base_of(files, start);
  std::set<std::string> left = candidates(files, folder_of(start), wanted);
  if (!overlay_dir.empty())
    left.merge(candidates(files, files.canonical(overlay_dir), wanted));
  add_what_is_below(files, left, wanted);
  left.erase(start);
  std::set<std::string> all = left;
  const auto is_old = [&](const std::string& overlay) { return is_committed(files, overlay); };
  std::erase_if(left, is_old);
  std::vector<std::string> chain;
  std::string below = start;
  while (chain.size() < kMostOverlays) {
    std::vector<std::string> above;
    for (const std::string& candidate : left)
      if (lies_over(files, candidate, below, wanted))
        above.push_back(candidate);
    if (above.empty()) {
      check_for_orphans(files, wanted, left, all);
      return chain;
    }
    const std::string last = *std::max_element(
        above.begin(), above.end(),
        [](const auto& a, const auto& b) { return session(a).number < session(b).number; });
    for (const std::string& each : above) {
      const bool earlier = session(each).number < session(last).number &&
                           files.modified(each) <= files.modified(last);
      if (each != last && (session(each).chain != session(last).chain || !earlier))
        fail(EEXIST, "{}: both {} and {} lie over it", below, each, last);
      left.erase(each);
    }
    below = last;
    chain.push_back(last);
    if (folder_of(below) != folder_of(start)) {
      left.merge(candidates(files, folder_of(below), wanted));
      all.insert(left.begin(), left.end());
      std::erase_if(left, is_old);
    }
  }
  fail(ELOOP, "{}: more than {} overlays lie over it", start, kMostOverlays);
}

}  // namespace

std::string base_of(Files& files, const std::string& image) {
  if (!session_of(base_name(image)))
    return std::string(base_name(image));
  for (const std::string_view kind : {kUncommitted, kCommitting, kCommitted}) {
    if (!bears(files, image, kind))
      continue;
    return second_line(files.read_text(mark_path(image, kind)).value_or(""));
  }
  return std::string();
}

void create_overlay(Files& files, const std::string& overlay, const std::string& base,
                    std::uint64_t disk_size, const std::string& backing,
                    image::Format backing_format) {
  for (const std::string_view kind : {kCommitted, kCommitting})
    files.remove(mark_path(overlay, kind));  // of one of that name that has gone
  files.create_overlay(overlay, disk_size, backing, backing_format);
  try {
    files.write_text(mark_path(overlay, kUncommitted), text_of_mark(overlay, base));
    if (files.canonical(folder_of(overlay)) != folder_of(base))
      files.write_text(pointer_path(overlay, base),
                       fmt::format("{}\n{}\n", overlay, base_name(base)));
  } catch (const Error&) {
    files.remove(overlay);
    files.remove(mark_path(overlay, kUncommitted));
    files.remove(pointer_path(overlay, base));
    throw;
  }
}

void remove_current(Files& files, const std::string& overlay) {
  const std::string folder = folder_of(overlay);
  for (const std::string& name : files.list(folder))
    if (name.starts_with(kCurrent) &&
        base_name(first_line(files, folder + "/" + name)) == base_name(overlay))
      files.remove(folder + "/" + name);
}

void move_current(Files& files, const std::string& overlay, const std::string& below) {
  const std::string folder = folder_of(overlay);
  for (const std::string& name : files.list(folder)) {
    if (!name.starts_with(kCurrent))
      continue;
    const std::string path = first_line(files, folder + "/" + name);
    if (base_name(path) != base_name(overlay))
      continue;
    const bool beside = folder_of(below) == folder;
    const std::string next = beside ? folder_of(path) + "/" + std::string(base_name(below)) : below;
    files.write_text(folder_of(below) + "/" + name, next + "\n");
    if (!beside)
      files.remove(folder + "/" + name);
  }
}

void mark_committed(Files& files, const std::string& overlay) {
  change_mark(files, overlay, kCommitted);
}

void unmark_committed(Files& files, const std::string& overlay) {
  if (is_committed(files, overlay))
    change_mark(files, overlay, kUncommitted);
}

bool is_committed(Files& files, const std::string& overlay) {
  return bears(files, overlay, kCommitted);
}

void mark_committing(Files& files, const std::string& overlay) {
  change_mark(files, overlay, kCommitting);
  sign_committing(files, overlay);
}

void sign_committing(Files& files, const std::string& overlay) {
  files.touch(mark_path(overlay, kCommitting));
}

void unmark_committing(Files& files, const std::string& overlay) {
  if (bears(files, overlay, kCommitting))
    change_mark(files, overlay, kUncommitted);
}

std::optional<std::int64_t> committing_since(Files& files, const std::string& overlay) {
  if (!bears(files, overlay, kCommitting))
    return std::nullopt;
  return files.modified(mark_path(overlay, kCommitting));
}

bool is_half_made(Files& files, const std::string& overlay) {
  return !files.backing_of(overlay);
}

void mark_merged(Files& files, const std::string& overlay) {
  if (!files.exists(overlay) || is_committed(files, overlay))
    return;
  try {
    mark_committed(files, overlay);
  } catch (const Error&) {  // no room: its removal makes some
  }
}

bool remove_overlay(Files& files, const std::string& overlay, const std::string& base) {
  const bool was_there = files.exists(overlay);
  remove_current(files, overlay);
  // The mark is there from before to after: whoever finds a part of the rest knows what it is.
  mark_merged(files, overlay);
  if (broken("mark-removed-first"))
    files.remove(mark_path(overlay, kCommitted));
  files.remove(overlay);
  if (!base.empty())
    files.remove(pointer_path(overlay, base));
  for (const std::string_view kind : {kCommitting, kUncommitted, kCommitted})
    files.remove(mark_path(overlay, kind));
  return was_there;
}

void mark_committed_before(Files& files, const std::string& overlay,
                           const std::set<std::string>& overlays) {
  const std::optional<std::string> below = files.backing_of(overlay);
  const auto lay_over_it = [&](std::optional<std::string> each) {
    for (std::size_t i = 0; i < kMostOverlays && each && each != below; ++i)
      each = session_of(base_name(*each)) ? files.backing_of(*each) : std::nullopt;
    return each.has_value();
  };
  for (const std::string& each : overlays)
    if (below && each != below && session(each).chain == session(overlay).chain &&
        session(each).number < session(overlay).number && files.exists(each) &&
        lay_over_it(files.backing_of(each)) && files.modified(each) <= files.modified(overlay) &&
        !is_committed(files, each))
      mark_committed(files, each);
}

std::vector<std::string> overlays_beside(Files& files, const std::string& image) {
  const std::string base = files.canonical(image);
  const std::set<std::string> found = candidates(files, folder_of(base), base_of(files, base));
  return {found.begin(), found.end()};
}

std::vector<std::string> overlays_directly_over(Files& files, const std::string& image) {
  const std::string base = files.canonical(image);
  std::vector<std::string> over = overlays_beside(files, base);
  const std::string wanted = base_of(files, base);
  std::erase_if(over,
                [&](const std::string& each) { return !lies_over(files, each, base, wanted); });
  return over;
}

std::string base_below(Files& files, const std::string& image) {
  std::string below = files.canonical(image);
  for (std::size_t i = 0; i < kMostOverlays && session_of(base_name(below)); ++i) {
    const auto backing = files.backing_of(below);
    if (!backing || !files.exists(*backing))
      break;
    below = *backing;
  }
  return below;
}

std::vector<std::string> overlays_over(Files& files, const std::string& image,
                                       const std::string& overlay_dir) {
  const std::string start = files.canonical(image);
  const std::string base = base_below(files, start);
  if (session_of(base_name(base)))  // what is below it has gone, or it is no image
    return overlays_over_base(files, start, overlay_dir);
  std::vector<std::string> chain = overlays_over_base(files, base, overlay_dir);
  if (base == start)
    return chain;
  const auto at = std::find(chain.begin(), chain.end(), start);
  if (at == chain.end())
    fail(ESTALE, "{}: was committed into {}, and holds nothing that counts any more", start, base);
  chain.erase(chain.begin(), at + 1);
  return chain;
}

void write_current(Files& files, const std::string& overlay, const std::string& qemu_path,
                   std::string_view image) {
  const std::string folder = folder_of(overlay);
  const std::string path = fmt::format("{}/{}{}", folder, kCurrent, image);
  const std::string before = first_line(files, path);
  if (before == qemu_path)
    return;
  const auto session = session_of(base_name(before));
  const std::string disk = session ? disk_of(before) : std::string();
  const bool same = session && session->chain == session_of(base_name(overlay))->chain &&
                    disk == disk_of(overlay);
  if (session && !same && files.exists(fmt::format("{}/{}", folder, base_name(before))))
    fail(EEXIST,
         "{}: is of another disk's or guest's image of that name ({}); give images that share a "
         "folder for overlays names of their own, or another --overlay-dir",
         path, before);
  files.write_text(path, qemu_path + "\n");
}

}  // namespace nbdelta::client::backup
