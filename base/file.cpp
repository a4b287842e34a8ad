#include "base/file.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "base/error.hpp"

namespace nbdelta {

void FileDescriptor::reset() noexcept {
  if (fd_ >= 0)
    ::close(fd_);
  fd_ = -1;
}

File File::open(const std::string& path, int flags, mode_t mode) {
  FileDescriptor fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
  if (!fd)
    fail_errno("{}: cannot open", path);
  return File(std::move(fd), path);
}

struct stat File::status() const {
  struct stat status {};
  if (::fstat(fd(), &status) != 0)
    fail_errno("{}: fstat", name_);
  return status;
}

std::uint64_t File::size() const {
  const struct stat facts = status();
  if (!S_ISBLK(facts.st_mode))
    return static_cast<std::uint64_t>(facts.st_size);
  std::uint64_t bytes = 0;
  if (::ioctl(fd(), BLKGETSIZE64, &bytes) != 0)
    fail_errno("{}: cannot tell the block device's size", name_);
  return bytes;
}

bool File::is_in_memory() const noexcept {
  struct stat status {};
  struct statfs facts {};
  return ::fstat(fd(), &status) == 0 &&
         S_ISREG(status.st_mode) &&  // a device's node is on devtmpfs
         ::fstatfs(fd(), &facts) == 0 &&
         (facts.f_type == TMPFS_MAGIC || facts.f_type == RAMFS_MAGIC);
}

std::size_t File::read_at(std::span<std::byte> out, std::uint64_t offset) const {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n =
        ::pread(fd(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      fail_errno("{}: cannot read {} bytes at {:#x}", name_, out.size() - done, offset + done);
    if (n == 0)
      break;
    done += static_cast<std::size_t>(n);
  }
  return done;
}

void File::read_exactly_at(std::span<std::byte> out, std::uint64_t offset) const {
  const std::size_t got = read_at(out, offset);
  if (got < out.size())
    fail(EIO, "{}: {} bytes at {:#x} are past the end of the file ({:#x})", name_, out.size(),
         offset, offset + got);
}

void File::write_at(std::span<const std::byte> data, std::uint64_t offset) const {
  std::size_t done = 0;
  while (done < data.size()) {
    const ssize_t n =
        ::pwrite(fd(), data.data() + done, data.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      fail_errno("{}: cannot write {} bytes at {:#x}", name_, data.size() - done, offset + done);
    if (n == 0)
      fail(ENOSPC, "{}: is full: cannot write at {:#x}", name_, offset + done);
    done += static_cast<std::size_t>(n);
  }
}

bool File::copy_from(const File& from, std::uint64_t from_offset, std::uint64_t length,
                     std::uint64_t offset) const {
  auto in = static_cast<off_t>(from_offset);
  auto out = static_cast<off_t>(offset);
  while (length > 0) {
    const ssize_t n = ::copy_file_range(from.fd(), &in, fd(), &out, length, 0);
    if (n < 0 && errno == EINTR)
      continue;
    // 0: the file ends here, or its file system cannot say that it cannot.
    if (n == 0 || (n < 0 && (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP ||
                             errno == ENOSYS || errno == EPERM || errno == EBADF)))
      return false;
    if (n < 0)
      fail_errno("{}: cannot copy {} bytes at {:#x} of {} to {:#x}", name_, length, in, from.name(),
                 out);
    length -= static_cast<std::uint64_t>(n);
  }
  return true;
}

void File::resize(std::uint64_t length) const {
  if (::ftruncate(fd(), static_cast<off_t>(length)) != 0)
    fail_errno("{}: cannot set the length to {} bytes", name_, length);
}

void File::sync() const {
  if (::fsync(fd()) != 0)
    fail_errno("{}: fsync", name_);
}

void File::drop_cached() const noexcept {
  (void)::posix_fadvise(fd(), 0, 0, POSIX_FADV_DONTNEED);  // advice: no file system must take it
}

void sync_folder_of(const std::string& path) {
  std::string folder = std::filesystem::path(path).parent_path().string();
  if (folder.empty())
    folder = ".";
  File::open(folder, O_RDONLY | O_DIRECTORY).sync();
}

}  // namespace nbdelta
