#include "image/permitted_file.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/error.hpp"

namespace nbdelta::image {
namespace {

namespace fs = std::filesystem;

/// As in path_resolution(7).
constexpr int kMostLinks = 40;

/// Opening a pipe or a tape must not wait or act before it is refused.
constexpr int kOpenFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

bool begins_with(const fs::path& path, const fs::path& beginning) {
  return std::mismatch(beginning.begin(), beginning.end(), path.begin(), path.end()).first ==
         beginning.end();
}

bool lies_in(const fs::path& file, const fs::path& folder) {
  return file != folder && begins_with(file, folder);
}

File checked_kind(FileDescriptor fd, const std::string& path) {
  File file(std::move(fd), path);
  const mode_t mode = file.status().st_mode;
  if (!S_ISREG(mode) && !S_ISBLK(mode))
    fail(EINVAL, "{}: is neither a regular file nor a block device", path);
  return file;
}

std::string plain_name(const std::string& image_path, const std::string& name) {
  std::string plain = name;
  if (plain.starts_with("file:"))
    plain.erase(0, 5);
  else if (const auto colon = plain.find(':');
           colon != std::string::npos && plain.find('/') > colon)
    fail(EINVAL, "{}: refers to '{}': only plain file names are opened", image_path, name);
  if (plain.empty())
    fail(EINVAL, "{}: refers to a file with an empty name", image_path);
  return plain;
}

/// A permitted folder: as the operator wrote it, and where that is.
struct Folder {
  fs::path spelled;
  fs::path canonical;

  explicit Folder(const std::string& path) {
    std::error_code status;
    canonical = fs::canonical(path, status);
    if (status)
      throw Error(status.value(), fmt::format("{}: cannot look at this permitted folder: {}", path,
                                              status.message()));
    spelled = fs::absolute(path);
    if (std::find(spelled.begin(), spelled.end(), "..") != spelled.end())
      spelled = canonical;  // what it means without links is not what it says
    spelled = spelled.lexically_normal();
    if (!spelled.has_filename())
      spelled = spelled.parent_path();
  }
};

/// Follows a name from component to component.
///
/// Invariants
/// 1. Only what lies below a permitted folder is looked at. On the way there names are compared
///    with the folders' own.
/// 2. `at_` has no symbolic links, unless `guessed_`.
class Walk {
 public:
  Walk(fs::path start, const std::vector<std::string>& folders)
      : at_(std::move(start)), folders_(folders.begin(), folders.end()) {}

  /// Where the name leads to; false where that is outside, or may be. Throws std::system_error.
  bool follow(const fs::path& name) {
    push(name);
    while (!left_.empty()) {
      const fs::path component = std::move(left_.back());
      left_.pop_back();
      if (component == ".." ? !step_up() : !step_to(at_ / component))
        return false;
    }
    return is_below_a_folder(at_);
  }

  /// The end of the way; where it led outside, as far as that can be told.
  fs::path place() const {
    fs::path place = at_;
    for (auto component = left_.rbegin(); component != left_.rend(); ++component)
      place /= *component;
    return place;
  }

 private:
  void push(const fs::path& name) {
    if (name.is_absolute()) {
      at_ = "/";
      guessed_ = false;
    }
    const std::size_t before = left_.size();
    for (const fs::path& component : name.relative_path())
      if (!component.empty() && component != ".")
        left_.push_back(component);
    std::reverse(left_.begin() + static_cast<std::ptrdiff_t>(before), left_.end());
  }

  bool step_up() {
    if (guessed_) {
      left_.emplace_back("..");
      return false;
    }
    at_ = at_.parent_path();
    return true;
  }

  bool step_to(const fs::path& next) {
    if (is_below_a_folder(next))
      return look_at(next);
    const auto any = [&](auto matches) {
      return std::find_if(folders_.begin(), folders_.end(), matches);
    };
    if (const auto found = any([&](const Folder& folder) { return next == folder.spelled; });
        found != folders_.end()) {
      at_ = found->canonical;
      guessed_ = false;
      return true;
    }
    at_ = next;
    const bool leads_to_canonical = any([&](const Folder& folder) {
                                      return begins_with(folder.canonical, next);
                                    }) != folders_.end();
    guessed_ = !leads_to_canonical;
    return leads_to_canonical || any([&](const Folder& folder) {
                                   return begins_with(folder.spelled, next);
                                 }) != folders_.end();
  }

  bool look_at(const fs::path& next) {
    const fs::file_status status = fs::symlink_status(next);
    if (!fs::exists(status))
      throw std::system_error(ENOENT, std::generic_category());
    if (status.type() == fs::file_type::symlink) {
      if (++links_ > kMostLinks)
        throw std::system_error(ELOOP, std::generic_category());
      push(fs::read_symlink(next));
      return true;
    }
    if (!left_.empty() && status.type() != fs::file_type::directory)
      throw std::system_error(ENOTDIR, std::generic_category());
    at_ = next;
    return true;
  }

  bool is_below_a_folder(const fs::path& path) const {
    return std::any_of(folders_.begin(), folders_.end(),
                       [&](const Folder& folder) { return lies_in(path, folder.canonical); });
  }

  fs::path at_;
  bool guessed_ = false;        // it is a part of how the operator wrote a folder
  std::vector<fs::path> left_;  // the next component last
  int links_ = 0;
  std::vector<Folder> folders_;
};

}  // namespace

File open_image_file(const std::string& path, int flags) {
  FileDescriptor fd(::open(path.c_str(), kOpenFlags | flags));
  if (!fd)
    fail_errno("{}: cannot open", path);
  return checked_kind(std::move(fd), path);
}

std::string resolve_backing_path(const std::string& image_path, const std::string& name) {
  return (fs::path(image_path).parent_path() / plain_name(image_path, name)).string();
}

PermittedFile open_permitted_file(const std::string& image_path, const std::string& name,
                                  const std::vector<std::string>& folders, int flags) {
  const std::string path = resolve_backing_path(image_path, name);
  if (folders.empty())
    return {.file = {}, .outside = fs::absolute(path).string()};
  fs::path place;
  try {
    Walk walk(fs::canonical(fs::absolute(image_path).parent_path()), folders);
    const bool permitted = walk.follow(plain_name(image_path, name));
    place = walk.place();
    if (!permitted)
      return {.file = {}, .outside = place.string()};
  } catch (const std::system_error& error) {
    fail(error.code().value(), "{}: cannot open: {}", path, error.code().message());
  }
  // Should anything on the way have become a symbolic link since, this fails.
  open_how how{};
  how.flags = static_cast<__u64>(kOpenFlags | flags);
  how.resolve = RESOLVE_NO_SYMLINKS;
  FileDescriptor fd(
      static_cast<int>(::syscall(SYS_openat2, AT_FDCWD, place.c_str(), &how, sizeof how)));
  if (!fd)
    fail_errno("{}: cannot open", path);
  return {.file = checked_kind(std::move(fd), path), .outside = {}};
}

}  // namespace nbdelta::image
