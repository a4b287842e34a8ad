#include "client/backup/overlay_files.hpp"

#include <fmt/format.h>

#include <set>

#include "client/backup/names.hpp"

namespace nbdelta::client::backup {
namespace {

constexpr std::string_view kPointer = ".at";

std::string pointer_path(const std::string& overlay, const std::string& base) {
  return fmt::format("{}/{}{}", folder_of(base), base_name(overlay), kPointer);
}

/// Every overlay that the folder of an image holds or points to.
std::set<std::string> candidates(Files& files, const std::string& folder) {
  std::set<std::string> found;
  for (const std::string& name : files.list(folder)) {
    if (!session_of(name))
      continue;
    if (name.ends_with(".qcow2")) {
      found.insert(files.canonical(folder + "/" + name));
    } else if (name.ends_with(kPointer)) {
      std::string target = files.read_text(folder + "/" + name).value_or("");
      while (target.ends_with('\n'))
        target.pop_back();
      if (!target.empty() && files.exists(target))
        found.insert(files.canonical(target));
    }
  }
  return found;
}

}  // namespace

void create_overlay(Files& files, const std::string& overlay, const std::string& base,
                    std::uint64_t disk_size, const std::string& backing,
                    image::Format backing_format) {
  const bool elsewhere = files.canonical(folder_of(overlay)) != folder_of(base);
  if (elsewhere)
    files.write_text(pointer_path(overlay, base), overlay + "\n");
  try {
    files.create_overlay(overlay, disk_size, backing, backing_format);
  } catch (const Error&) {
    if (elsewhere)
      files.remove(pointer_path(overlay, base));
    throw;
  }
}

bool remove_overlay(Files& files, const std::string& overlay, const std::string& base) {
  const bool was_there = files.exists(overlay);
  const std::string folder = folder_of(overlay);
  for (const std::string& name : files.list(folder))
    if (name.starts_with(std::string(kPrefix) + "current-") &&
        files.canonical(folder + "/" + name) == overlay)
      files.remove(folder + "/" + name);
  files.remove(overlay);
  if (!base.empty())
    files.remove(pointer_path(overlay, base));
  return was_there;
}

std::vector<std::string> overlays_over(Files& files, const std::string& image) {
  const std::string start = files.canonical(image);
  std::set<std::string> left = candidates(files, folder_of(start));
  std::vector<std::string> chain;
  std::string below = start;
  while (true) {
    std::vector<std::string> above;
    for (const std::string& candidate : left)
      if (files.backing_of(candidate) == below)
        above.push_back(candidate);
    if (above.empty())
      return chain;
    if (above.size() > 1)
      fail(EEXIST, "{}: both {} and {} lie over it", below, above[0], above[1]);
    left.erase(above.front());
    below = above.front();
    chain.push_back(above.front());
    if (folder_of(below) != folder_of(start))
      left.merge(candidates(files, folder_of(below)));
  }
}

std::string current_link(const std::string& overlay, const std::string& disk_name) {
  return fmt::format("{}/{}current-{}.qcow2", folder_of(overlay), kPrefix, file_safe(disk_name));
}

}  // namespace nbdelta::client::backup
