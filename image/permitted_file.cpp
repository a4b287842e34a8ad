#include "image/permitted_file.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "base/error.hpp"

namespace nbdelta::image {
namespace {

namespace fs = std::filesystem;

/// Both canonical.
bool lies_in(const fs::path& file, const fs::path& folder) {
  const auto [end_of_folder, rest] =
      std::mismatch(folder.begin(), folder.end(), file.begin(), file.end());
  return end_of_folder == folder.end() && rest != file.end();
}

File checked_kind(FileDescriptor fd, const std::string& path) {
  File file(std::move(fd), path);
  const mode_t mode = file.status().st_mode;
  if (!S_ISREG(mode) && !S_ISBLK(mode))
    fail(EINVAL, "{}: is neither a regular file nor a block device", path);
  return file;
}

/// Opening a pipe or a tape must not wait or act before it is refused.
constexpr int kOpenFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

}  // namespace

File open_image_file(const std::string& path, int flags) {
  FileDescriptor fd(::open(path.c_str(), kOpenFlags | flags));
  if (!fd)
    fail_errno("{}: cannot open", path);
  return checked_kind(std::move(fd), path);
}

std::string resolve_backing_path(const std::string& image_path, const std::string& name) {
  std::string plain = name;
  if (plain.starts_with("file:"))
    plain.erase(0, 5);
  else if (const auto colon = plain.find(':');
           colon != std::string::npos && plain.find('/') > colon)
    fail(EINVAL, "{}: refers to '{}': only plain file names are opened", image_path, name);
  if (plain.empty())
    fail(EINVAL, "{}: refers to a file with an empty name", image_path);
  return (fs::path(image_path).parent_path() / plain).string();
}

std::optional<File> open_permitted_file(const std::string& path,
                                        const std::vector<std::string>& folders, int flags) {
  if (folders.empty())
    return std::nullopt;
  std::error_code status;
  const fs::path file = fs::canonical(path, status);
  if (status)
    throw Error(status.value(), fmt::format("{}: cannot open: {}", path, status.message()));
  const bool permitted = std::any_of(folders.begin(), folders.end(), [&](const auto& folder) {
    std::error_code folder_status;
    const fs::path canonical = fs::canonical(folder, folder_status);
    if (folder_status)
      throw Error(folder_status.value(), fmt::format("{}: cannot look at this permitted folder: {}",
                                                     folder, folder_status.message()));
    return lies_in(file, canonical);
  });
  if (!permitted)
    return std::nullopt;
  // Should anything on the way have become a symbolic link since, this fails.
  open_how how{};
  how.flags = static_cast<__u64>(kOpenFlags | flags);
  how.resolve = RESOLVE_NO_SYMLINKS;
  FileDescriptor fd(
      static_cast<int>(::syscall(SYS_openat2, AT_FDCWD, file.c_str(), &how, sizeof how)));
  if (!fd)
    fail_errno("{}: cannot open", path);
  return checked_kind(std::move(fd), path);
}

}  // namespace nbdelta::image
