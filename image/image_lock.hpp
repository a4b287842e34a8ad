#pragma once

#include <cstdint>

#include "base/file.hpp"

namespace nbdelta::image {

enum class Access : std::uint8_t {
  read,   // we rely on consistent reads; nobody may write or resize
  write,  // we write and resize; nobody else may
};

/// Takes part in QEMU's image locking (block/file-posix.c; docs/devel "image locking"): OFD locks
/// on single bytes of the image file, one range for what its owner does (100 + permission) and
/// one for what it does not allow others (200 + permission). They end with the last descriptor of
/// the open file, thus with the process. Throws Error (EAGAIN) that says who is in the way.
/// Files on which OFD locks do not work (ENOLCK, EINVAL, EOPNOTSUPP) are an Error too.
void lock_image(const File& file, Access access);

/// Whether somebody else relies on consistent reads of the file. Throws Error.
bool is_read_by_others(const File& file);

/// Gives back what Access::write takes and Access::read does not. Throws Error.
void stop_writing(const File& file);

}  // namespace nbdelta::image
