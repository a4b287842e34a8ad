#pragma once

#include <sys/stat.h>

#include <optional>

namespace nbdelta {

/// Which file or block device something is, whatever names and device nodes it has.
struct FileIdentity {
  explicit FileIdentity(const struct stat& status);
  bool operator==(const FileIdentity&) const = default;

  dev_t device;  // of a block device: its own number
  ino_t inode;   // of a block device: 0, as no file has
};

/// The file whose bytes a loop device shows from the first to the last (losetup(8)); nothing for
/// all else, and where that file cannot be found.
std::optional<FileIdentity> file_of_loop_device(const struct stat& device);

}  // namespace nbdelta
