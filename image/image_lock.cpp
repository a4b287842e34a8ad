#include "image/image_lock.hpp"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <string>

#include "base/error.hpp"

namespace nbdelta::image {
namespace {

// QEMU block/file-posix.c: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE; include/block/block-common.h:
// BLK_PERM_CONSISTENT_READ, _WRITE, _RESIZE as bit numbers.
constexpr off_t kHolds = 100;
constexpr off_t kForbids = 200;
constexpr off_t kConsistentRead = 0;
constexpr off_t kWrite = 1;
constexpr off_t kResize = 3;

struct flock one_byte(off_t byte, short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

void set_lock(const File& file, off_t byte, short type) {
  struct flock lock = one_byte(byte, type);
  if (::fcntl(file.fd(), F_OFD_SETLK, &lock) != 0)
    fail_errno("{}: cannot {} QEMU's image lock (byte {})", file.name(),
               type == F_UNLCK ? "let go of" : "take", byte);
}

void lock_byte(const File& file, off_t byte) {
  set_lock(file, byte, F_RDLCK);
}

bool is_held_by_others(const File& file, off_t byte) {
  struct flock lock = one_byte(byte, F_WRLCK);
  if (::fcntl(file.fd(), F_OFD_GETLK, &lock) != 0)
    fail_errno("{}: cannot look at QEMU's image locks (byte {})", file.name(), byte);
  return lock.l_type != F_UNLCK;
}

void refuse_if_held(const File& file, off_t byte, const char* what) {
  if (is_held_by_others(file, byte))
    fail(EAGAIN, "{}: another process {} (image lock, byte {})", file.name(), what, byte);
}

}  // namespace

void lock_image(const File& file, Access access) {
  // First take, then look: of two that start together, at least one sees the other.
  lock_byte(file, kHolds + kConsistentRead);
  if (access == Access::write) {
    lock_byte(file, kHolds + kWrite);
    lock_byte(file, kHolds + kResize);
  }
  lock_byte(file, kForbids + kWrite);
  lock_byte(file, kForbids + kResize);

  refuse_if_held(file, kForbids + kConsistentRead, "does not allow it to be read");
  if (access == Access::write) {
    refuse_if_held(file, kForbids + kWrite, "has it open and does not allow writing");
    refuse_if_held(file, kForbids + kResize, "has it open and does not allow resizing");
  }
  refuse_if_held(file, kHolds + kWrite, "has it open for writing");
  refuse_if_held(file, kHolds + kResize, "has it open for resizing");
}

bool is_read_by_others(const File& file) {
  return is_held_by_others(file, kHolds + kConsistentRead);
}

void stop_writing(const File& file) {
  set_lock(file, kHolds + kWrite, F_UNLCK);
  set_lock(file, kHolds + kResize, F_UNLCK);
}

}  // namespace nbdelta::image
