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

/// Opens a file whose name stands in an image, and that may thus have been chosen by whoever wrote
/// the image: only where the file, symbolic links resolved, lies in one of `folders`. Returns
/// nothing where it does not. Throws Error where it does but cannot be opened.
std::optional<File> open_permitted_file(const std::string& path,
                                        const std::vector<std::string>& folders, int flags);

}  // namespace nbdelta::image
