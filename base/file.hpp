#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace nbdelta {

/// Owns a file descriptor; -1 owns nothing.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() { reset(); }

  int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }
  void reset() noexcept;
  /// The caller owns it from now on.
  int release() noexcept { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

/// An open regular file or block device, and the name that messages call it by. Every function
/// is safe to call from several threads; failures throw Error with the name and the place.
class File {
 public:
  File() = default;
  File(FileDescriptor fd, std::string name) : fd_(std::move(fd)), name_(std::move(name)) {}

  /// Opens with O_CLOEXEC added to `flags`. Throws Error (the errno of open(2)).
  static File open(const std::string& path, int flags, mode_t mode = 0666);

  int fd() const noexcept { return fd_.get(); }
  const std::string& name() const noexcept { return name_; }
  explicit operator bool() const noexcept { return static_cast<bool>(fd_); }

  /// fstat(2).
  struct stat status() const;

  /// Bytes that can be read: the file's length, or the block device's.
  std::uint64_t size() const;

  /// Whether it is a regular file on tmpfs or ramfs: no device is ever waited for (but for swap).
  bool is_in_memory() const noexcept;

  /// Reads until `out` is full or the file ends; returns the bytes read.
  std::size_t read_at(std::span<std::byte> out, std::uint64_t offset) const;

  /// Reads exactly; a file that ends before is an Error (EIO).
  void read_exactly_at(std::span<std::byte> out, std::uint64_t offset) const;

  void write_at(std::span<const std::byte> data, std::uint64_t offset) const;

  /// Has the kernel copy a range of another file (copy_file_range(2): by reference, or on the
  /// server, where the file system can). Returns false where it cannot for these two files; part of
  /// the range may be copied then.
  bool copy_from(const File& from, std::uint64_t from_offset, std::uint64_t length,
                 std::uint64_t offset) const;

  /// ftruncate(2).
  void resize(std::uint64_t length) const;

  /// fsync(2).
  void sync() const;

  /// Has the kernel begin to write what is dirty, and take all that is clean out of the page cache,
  /// whoever had it read. Waits for nothing; a failed write is still sync()'s to report.
  void drop_cached() const noexcept;

 private:
  FileDescriptor fd_;
  std::string name_;
};

/// Makes a new or renamed name in the folder of `path` durable.
void sync_folder_of(const std::string& path);

}  // namespace nbdelta
