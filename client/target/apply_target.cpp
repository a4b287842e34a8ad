#include "client/target/apply_target.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/arithmetic.hpp"
#include "client/target/file_names.hpp"
#include "client/target/zeros.hpp"
#include "image/image_lock.hpp"
#include "image/unfinished_mark.hpp"

namespace nbdelta::client::target {
namespace {

constexpr std::uint64_t kSector = 512;
constexpr std::size_t kLongestMark = 16 * kKiB;

/// Makes a range read zero without writing it. False where the file cannot.
bool deallocate(const File& file, std::uint64_t offset, std::uint64_t length) {
  const auto from = static_cast<off_t>(offset);
  const auto count = static_cast<off_t>(length);
  for (const int mode : {FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE}) {
    if (::fallocate(file.fd(), mode | FALLOC_FL_KEEP_SIZE, from, count) == 0)
      return true;
    if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS && errno != ENODEV)
      fail_errno("{}: cannot zero {} bytes at {}", file.name(), length, offset);
  }
  return false;
}

}  // namespace

ApplyTarget::ApplyTarget(const std::string& path, Doubts doubts, Changes changes)
    : path_(path),
      mark_path_(image::unfinished_mark_of(follow_link(path))),
      doubts_(doubts),
      changes_(changes) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0)
    refuse(errno, "{}: {}; --apply needs an image to write the changes into", path,
           std::strerror(errno));
  block_device_ = S_ISBLK(status.st_mode);
  if (!block_device_ && !S_ISREG(status.st_mode))
    refuse(EINVAL, "{}: neither a regular file nor a block device", path);
}

const image::ExtentMap& ApplyTarget::prepare(const Description& description,
                                             asio::io_context& /*loop*/) {
  check_changes(path_, description, changes_);
  or_refuse([&] {
    // O_EXCL without O_CREAT: a block device that is mounted is refused.
    file_ = File::open(path_, O_RDWR | (block_device_ ? O_EXCL : 0));
    image::lock_image(file_, image::Access::write);
  });
  check_writable();
  const std::uint64_t size = file_.size();
  if (size < description.disk_size)
    refuse(EINVAL, "{}: has {} bytes, the disk has {}; a larger one is needed", path_, size,
           description.disk_size);
  if (doubts_ == Doubts::refuse) {
    check_size(size, description.disk_size);
    check_look();
    check_mark(description.source);
  }
  mark(description.source);
  return *description.map;
}

/// Many a read-only device can be opened for writing all the same, and only each write fails.
void ApplyTarget::check_writable() const {
  int read_only = 0;
  if (block_device_ && ::ioctl(file_.fd(), BLKROGET, &read_only) == 0 && read_only != 0)
    refuse(EROFS, "{}: may not be written to: the device is read-only", path_);
}

/// What is past the disk's end would stay as it is: a copy of another disk, more likely than not. A
/// block device is often larger, and the disk's size may have been rounded up to sectors.
void ApplyTarget::check_size(std::uint64_t size, std::uint64_t disk_size) const {
  if (block_device_ || size <= round_up(disk_size, kSector))
    return;
  refuse(
      EINVAL,
      "{}: has {} bytes, the disk only {}; what is past that would stay as it is. Is it the copy "
      "of another disk? --force writes into it all the same",
      path_, size, disk_size);
}

/// The format is what the user says; but raw bytes in a qcow2 image destroy it.
void ApplyTarget::check_look() const {
  constexpr std::string_view kMagic = "QFI\xfb";
  std::array<char, 4> start{};
  const std::size_t got = file_.read_at(std::as_writable_bytes(std::span(start)), 0);
  if (std::string_view(start.data(), got) == kMagic)
    refuse(EINVAL,
           "{}: begins like a qcow2 image, and --apply writes raw; pull into a new .qcow2 with "
           "--base {} instead, or add --force if it really is raw",
           path_, path_);
}

void ApplyTarget::check_mark(const std::string& source) const {
  if (block_device_ || ::access(mark_path_.c_str(), F_OK) != 0)
    return;
  const File marked = or_refuse([&] { return File::open(mark_path_, O_RDONLY | O_NOFOLLOW); });
  std::string by(kLongestMark, '\0');
  by.resize(marked.read_at(std::as_writable_bytes(std::span(by)), 0));
  while (!by.empty() && by.back() == '\n')
    by.pop_back();
  if (by != source)
    refuse(EEXIST,
           "{}: an earlier pull from {} was not finished (see {}); finish that one first, pull the "
           "whole disk (--full --force), or add --force where all that it would have written is "
           "among the changes now",
           path_, by, mark_path_);
}

void ApplyTarget::mark(const std::string& source) {
  if (block_device_) {
    started_ = true;
    return;
  }
  const std::string next = next_mark_of(mark_path_);  // a mark that is there is whole
  try {
    or_refuse([&] {
      const File mark = File::open(next, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
      const std::string text = source + "\n";
      mark.write_at(std::as_bytes(std::span(text)), 0);
      mark.sync();
      if (::rename(next.c_str(), mark_path_.c_str()) != 0)
        fail_errno("{}: cannot be renamed to {}", next, mark_path_);
    });
  } catch (const Error&) {
    ::unlink(next.c_str());
    throw;
  }
  sync_folder_of(mark_path_);
  started_ = true;
}

void ApplyTarget::write_at(std::span<const std::byte> data, std::uint64_t offset) {
  file_.write_at(data, offset);
}

bool ApplyTarget::copy_at(const File& from, std::uint64_t from_offset, std::uint64_t length,
                          std::uint64_t offset) {
  return file_.copy_from(from, from_offset, length, offset);
}

void ApplyTarget::zero_at(std::uint64_t offset, std::uint64_t length) {
  if (deallocate(file_, offset, length))
    return;
  for (const std::uint64_t end = offset + length; offset < end;) {
    const std::span<const std::byte> part = zeros(end - offset);
    file_.write_at(part, offset);
    wrote(part.size());
    offset += part.size();
  }
}

void ApplyTarget::finish() {
  file_.sync();
  drop_cached();
  if (!block_device_) {
    if (::unlink(mark_path_.c_str()) != 0)
      fail_errno("{}: cannot be removed", mark_path_);
    sync_folder_of(mark_path_);
  }
  finished_ = true;
}

std::string ApplyTarget::abandon() noexcept {
  if (!started_ || finished_)
    return {};
  if (block_device_)
    return fmt::format(
        "{} is only partly written, and nothing marks it: pull the same changes, or the whole "
        "disk, into it before anything else",
        path_);
  return fmt::format("{} is only partly written, and marked so by {}: pull into it again", path_,
                     mark_path_);
}

}  // namespace nbdelta::client::target
