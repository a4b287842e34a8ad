#pragma once

#include <string>

namespace nbdelta::image {

/// The file beside an image that changes are being applied to; it holds the source's URI. While it
/// is there the image is no instant of the disk. `image` is no symbolic link.
inline std::string unfinished_mark_of(const std::string& image) {
  return image + ".nbdelta-unfinished";
}

}  // namespace nbdelta::image
