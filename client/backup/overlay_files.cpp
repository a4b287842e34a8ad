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

/// The file name of an image, or of the base of one that is an overlay; empty: not known.
std::string base_of(Files& files, const std::string& image) {
  if (!session_of(base_name(image)))
    return std::string(base_name(image));
  for (const std::string_view kind : {kUncommitted, kCommitted}) {
    if (!bears(files, image, kind))
      continue;
    const std::string text = files.read_text(mark_path(image, kind)).value_or("");
    const std::string rest = text.substr(text.find('\n') + 1);
    return rest.substr(0, rest.find('\n'));
  }
  return std::string();
}

/// Every overlay that the folder of an image holds or points to, or that has left its mark there.
std::set<std::string> candidates(Files& files, const std::string& folder) {
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
      const std::string target = first_line(files, folder + "/" + name);
      if (!files.exists(target) && !is_committed(files, target))
        fail(ENOENT,
             "{}/{} points to the overlay '{}', which is not there: is its storage mounted?",
             folder, name, target);
      found.insert(files.canonical(target));
    }
  }
  return found;
}

SessionId session(const std::string& overlay) {
  return session_of(base_name(overlay)).value_or(SessionId());
}

/// Also where the overlay calls the image by a path of another machine.
bool lies_over(Files& files, const std::string& overlay, const std::string& image) {
  const auto backing = files.backing_of(overlay);
  if (!backing)
    return false;
  return *backing == image || (!files.exists(*backing) && base_name(*backing) == base_name(image));
}

/// Throws Error (ENOENT) where an overlay of the image lies over another one that has gone.
/// `overlays`: those that count and were not found over anything.
void check_for_orphans(Files& files, const std::string& image,
                       const std::set<std::string>& overlays, const std::set<std::string>& all) {
  const std::string wanted = base_of(files, image);
  for (const std::string& overlay : overlays) {
    const std::string backing = files.backing_of(overlay).value_or("");
    // On another machine its folder has another name.
    const auto is_it = [&](const std::string& each) {
      return base_name(each) == base_name(backing) && files.exists(each);
    };
    if (!session_of(base_name(backing)) || files.exists(backing) ||
        std::any_of(all.begin(), all.end(), is_it))
      continue;
    const std::string base = base_of(files, overlay);
    if (base == wanted || base.empty() || wanted.empty())
      fail(ENOENT,
           "{} lies over {}, which is not there. If that was committed (QEMU's host may have "
           "failed before the new header was written), 'qemu-img rebase -u -b IMAGE -F FORMAT {}' "
           "with the image below it puts that right",
           overlay, backing, overlay);
  }
}

}  // namespace

void create_overlay(Files& files, const std::string& overlay, const std::string& base,
                    std::uint64_t disk_size, const std::string& backing,
                    image::Format backing_format) {
  for (const std::string_view kind : {kCommitted, kCommitting})
    files.remove(mark_path(overlay, kind));  // of one of that name that has gone
  files.create_overlay(overlay, disk_size, backing, backing_format);
  try {
    files.write_text(mark_path(overlay, kUncommitted), text_of_mark(overlay, base));
    if (files.canonical(folder_of(overlay)) != folder_of(base))
      files.write_text(pointer_path(overlay, base), overlay + "\n");
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

void mark_committed(Files& files, const std::string& overlay) {
  if (bears(files, overlay, kUncommitted))
    files.rename(mark_path(overlay, kUncommitted), mark_path(overlay, kCommitted));
  else
    files.write_text(mark_path(overlay, kCommitted), text_of_mark(overlay, ""));
}

void unmark_committed(Files& files, const std::string& overlay) {
  if (is_committed(files, overlay))
    files.rename(mark_path(overlay, kCommitted), mark_path(overlay, kUncommitted));
}

bool is_committed(Files& files, const std::string& overlay) {
  return bears(files, overlay, kCommitted);
}

void mark_committing(Files& files, const std::string& overlay) {
  files.write_text(mark_path(overlay, kCommitting), text_of_mark(overlay, ""));
}

void unmark_committing(Files& files, const std::string& overlay) {
  files.remove(mark_path(overlay, kCommitting));
}

bool is_committing(Files& files, const std::string& overlay) {
  return bears(files, overlay, kCommitting);
}

bool is_half_made(Files& files, const std::string& overlay) {
  return !files.backing_of(overlay);
}

bool remove_overlay(Files& files, const std::string& overlay, const std::string& base) {
  const bool was_there = files.exists(overlay);
  remove_current(files, overlay);
  // The mark is there from before to after: whoever finds a part of the rest knows what it is.
  if (was_there && !is_committed(files, overlay)) {
    try {
      mark_committed(files, overlay);
    } catch (const Error&) {  // no room: this makes some
    }
  }
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
  const auto below = files.exists(overlay) ? files.backing_of(overlay) : std::nullopt;
  for (const std::string& each : overlays)
    if (below && session(each).chain == session(overlay).chain &&
        session(each).number < session(overlay).number && files.exists(each) &&
        files.backing_of(each) == below && files.modified(each) <= files.modified(overlay) &&
        !is_committed(files, each))
      mark_committed(files, each);
}

std::vector<std::string> overlays_beside(Files& files, const std::string& image) {
  const std::set<std::string> found = candidates(files, folder_of(files.canonical(image)));
  return {found.begin(), found.end()};
}

std::vector<std::string> overlays_directly_over(Files& files, const std::string& image) {
  const std::string base = files.canonical(image);
  std::vector<std::string> over = overlays_beside(files, base);
  std::erase_if(over, [&](const std::string& each) { return !lies_over(files, each, base); });
  return over;
}

std::vector<std::string> overlays_over(Files& files, const std::string& image,
                                       const std::string& overlay_dir) {
  const std::string start = files.canonical(image);
  std::set<std::string> left = candidates(files, folder_of(start));
  if (!overlay_dir.empty())
    left.merge(candidates(files, files.canonical(overlay_dir)));
  std::set<std::string> all = left;
  const auto is_old = [&](const std::string& overlay) { return is_committed(files, overlay); };
  std::erase_if(left, is_old);
  std::vector<std::string> chain;
  std::string below = start;
  while (chain.size() < kMostOverlays) {
    std::vector<std::string> above;
    for (const std::string& candidate : left)
      if (lies_over(files, candidate, below))
        above.push_back(candidate);
    if (above.empty()) {
      check_for_orphans(files, start, left, all);
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
      left.merge(candidates(files, folder_of(below)));
      all.insert(left.begin(), left.end());
      std::erase_if(left, is_old);
    }
  }
  fail(ELOOP, "{}: more than {} overlays lie over it", start, kMostOverlays);
}

void write_current(Files& files, const std::string& overlay, const std::string& qemu_path,
                   std::string_view image) {
  const std::string folder = folder_of(overlay);
  const std::string path = fmt::format("{}/{}{}", folder, kCurrent, image);
  const std::string before = first_line(files, path);
  if (before == qemu_path)
    return;
  const auto session = session_of(base_name(before));
  if (session && session->chain != session_of(base_name(overlay))->chain &&
      files.exists(fmt::format("{}/{}", folder, base_name(before))))
    fail(EEXIST, "{}: is of another guest's image of that name ({}); --overlay-dir helps", path,
         before);
  files.write_text(path, qemu_path + "\n");
}

}  // namespace nbdelta::client::backup
