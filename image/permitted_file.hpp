#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/file.hpp"

namespace nbdelta::image {

/// Opens an image file or block device, by a name that the operator gave. Refuses (Error, EINVAL)
/// anything else, such as a folder or a pipe. `flags` are added to O_RDONLY.
File open_image_file(const std::string& path, int flags);

/// The path that a name inside an image stands for, as QEMU takes it: relative to the folder of the
/// image. Throws Error (EINVAL) for names of another protocol (`nbd:…`, `json:…`).
std::string resolve_backing_path(const std::string& image_path, const std::string& name);

struct PermittedFile {
  std::optional<File> file;  // absent: the name leads out of the permitted folders
  std::string outside;       // then: where to, as far as the name tells
};

/// Opens a file whose name stands in an image, and that may thus have been chosen by whoever wrote
/// the image: only where the file, symbolic links followed, lies in one of `folders`.
///
/// Nothing outside of these folders is opened or even looked at (a look may mount a file system, or
/// tell what there is), but for the folder of the image itself. So a name that leaves the folders
/// on its way is not followed back in, and a link outside of them is known only as part of a folder
/// as it is written in `folders`. Throws Error where the file lies in one but cannot be opened.
PermittedFile open_permitted_file(const std::string& image_path, const std::string& name,
                                  const std::vector<std::string>& folders, int flags);

}  // namespace nbdelta::image
