#include "client/target/new_file.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/units.hpp"
#include "client/target/file_names.hpp"
#include "client/target/target.hpp"
#include "image/image_lock.hpp"
#include "image/unfinished_mark.hpp"

namespace nbdelta::client::target {
namespace {

// chmod(2), "mode bits".
constexpr mode_t kUsual = 0666;
constexpr mode_t kNobodyElse = 0600;
constexpr mode_t kPermissions = S_IRWXU | S_IRWXG | S_IRWXO;
constexpr mode_t kAllModeBits = S_ISUID | S_ISGID | S_ISVTX | kPermissions;

constexpr auto kUnchanged = static_cast<uid_t>(-1);  // chown(2)

}  // namespace

NewFile::NewFile(const std::string& path, Existing existing)
    : path_(follow_link(path)), partial_(partial_name_of(path_)), existing_(existing) {}

void NewFile::check_name() const {
  struct stat status {};
  if (::lstat(path_.c_str(), &status) == 0 && existing_ == Existing::refuse)
    refuse(
        EEXIST,
        "{}: exists already; --force replaces it, --apply writes the changes into it (raw images "
        "only)",
        path_);
  if (::stat(path_.c_str(), &status) != 0)
    return;
  if (!S_ISREG(status.st_mode))
    refuse(EINVAL, "{}: is no regular file, and only such a file can be replaced", path_);
  try {
    image::lock_image(File::open(path_, O_RDWR), image::Access::write);
  } catch (const Error& error) {
    refuse(error.error_number(), "{}; it is not replaced", error.what());
  }
}

void NewFile::create() {
  check_name();
  struct stat old {};
  const bool replaces = ::stat(path_.c_str(), &old) == 0;
  const mode_t mode = replaces ? kNobodyElse : kUsual;
  open_partial(mode);
  if (file_.status().st_nlink > 1) {  // a finished copy's other name, see rename()
    if (::unlink(partial_.c_str()) != 0)
      refuse(errno, "{}: is another name of a finished copy, and cannot be removed: {}", partial_,
             std::strerror(errno));
    open_partial(mode);
  }
  {
    const std::lock_guard guard(mutex_);
    if (state_ == State::abandoned)
      fail(ECANCELED, "{}: interrupted", path_);
    state_ = State::partial;
  }
  file_.resize(0);
  if (replaces)
    take_permissions_of(old);
}

void NewFile::open_partial(mode_t mode) {
  struct stat there {};
  if (::lstat(partial_.c_str(), &there) == 0 && !S_ISREG(there.st_mode))
    refuse(EEXIST, "{}: is in the way: it is no regular file", partial_);
  file_ = or_refuse([&] { return File::open(partial_, O_RDWR | O_CREAT | O_NOFOLLOW, mode); });
  try {
    image::lock_image(file_, image::Access::write);
  } catch (const Error& error) {
    refuse(error.error_number(), "{} (another pull into {}?)", error.what(), path_);
  }
  identity_.emplace(file_.status());
  // Between open and lock another pull may have finished, and given this very file its name.
  if (!has_its_partial_name())
    refuse(EEXIST, "{}: another pull has just finished it", path_);
}

/// False where somebody has removed it; another pull may have begun a file of that name since.
bool NewFile::has_its_partial_name() const {
  struct stat named {};
  return ::lstat(partial_.c_str(), &named) == 0 && FileIdentity(named) == identity_;
}

/// Before any data is in the file, and so that nobody may do more with it than with the old one.
void NewFile::take_permissions_of(const struct stat& old) const {
  mode_t mode = old.st_mode & kAllModeBits;
  if (::fchown(file_.fd(), old.st_uid, old.st_gid) != 0) {
    mode &= kPermissions;
    if (::fchown(file_.fd(), kUnchanged, old.st_gid) != 0)  // the bits are another group's now
      mode &= S_IRWXU | S_IRWXO | (mode & S_IRWXO) << 3;
  }
  if (::fchmod(file_.fd(), mode) != 0)
    refuse(errno, "{}: cannot have the mode {:o}, as {} has: {}", partial_, mode, path_,
           std::strerror(errno));
}

void NewFile::check_space(std::uint64_t bytes, const File* shared) const {
  if (shared != nullptr && can_share_blocks_of(*shared))
    return;
  struct statvfs space {};
  if (::fstatvfs(file_.fd(), &space) != 0)
    fail_errno("{}: cannot ask for the free space", partial_);
  const std::uint64_t left = std::uint64_t{space.f_bavail} * space.f_frsize;
  if (bytes > left)
    refuse(ENOSPC, "{}: needs {}, but the file system has {} left", path_, format_size(bytes),
           format_size(left));
}

/// Tried with one block: what a file system can do, and between which two files, it alone knows.
bool NewFile::can_share_blocks_of(const File& other) const {
  file_clone_range range{};
  range.src_fd = other.fd();
  range.src_length = static_cast<std::uint64_t>(file_.status().st_blksize);
  const bool can = ::ioctl(file_.fd(), FICLONERANGE, &range) == 0;
  file_.resize(0);
  return can;
}

void NewFile::publish() {
  {
    const std::lock_guard guard(mutex_);
    if (state_ != State::partial)
      fail(ECANCELED, "{}: interrupted", path_);
    rename();
    state_ = State::published;
  }
  const std::string mark =
      image::unfinished_mark_of(path_);  // of an --apply to what was there before
  if (::unlink(mark.c_str()) != 0 && errno != ENOENT)
    fail_errno("{} is complete, but {} cannot be removed", path_, mark);
  sync_folder_of(path_);  // may hang with the disk, and abandon() must not
}

void NewFile::rename() {
  if (!has_its_partial_name())
    fail(ESTALE, "{}: is no longer the file that was written: it was removed meanwhile", partial_);
  const unsigned flags = existing_ == Existing::replace ? 0 : RENAME_NOREPLACE;
  if (::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, path_.c_str(), flags) == 0)
    return;
  if (errno == EEXIST)
    fail(EEXIST, "{}: was made by somebody else in the meantime; --force replaces it", path_);
  // A file system that cannot refuse by itself: a link can.
  if (errno != EINVAL || ::link(partial_.c_str(), path_.c_str()) != 0)
    fail_errno("{}: cannot be renamed to {}", partial_, path_);
  ::unlink(partial_.c_str());  // where it stays, create() knows it by its two names
}

std::string NewFile::abandon() noexcept {
  const std::lock_guard guard(mutex_);
  const State before =
      std::exchange(state_, state_ == State::published ? state_ : State::abandoned);
  if (before != State::partial || !has_its_partial_name())
    return {};
  if (::unlink(partial_.c_str()) != 0 && errno != ENOENT)
    return fmt::format("{} could not be removed: {}", partial_, std::strerror(errno));
  return fmt::format("{} was removed", partial_);
}

}  // namespace nbdelta::client::target
