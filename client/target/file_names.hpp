#pragma once

#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>

#include "client/target/target.hpp"

namespace nbdelta::client::target {

/// What `path` stands for as a target: of a symbolic link, as with cp and qemu-img, the file that
/// it leads to. Throws TargetRefused for a link that leads nowhere.
inline std::string follow_link(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISLNK(status.st_mode))
    return path;
  std::error_code error;
  const std::filesystem::path file = std::filesystem::canonical(path, error);
  if (error)
    refuse(error.value(), "{}: is a symbolic link that leads nowhere ({})", path, error.message());
  return file.string();
}

/// What a new file is called until it is complete.
inline std::string partial_name_of(const std::string& file) {
  return file + ".partial";
}

/// What image::unfinished_mark_of() is called until it is complete.
inline std::string next_mark_of(const std::string& mark) {
  return mark + ".new";
}

}  // namespace nbdelta::client::target
