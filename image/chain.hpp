#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "image/disk.hpp"
#include "image/qcow2_header.hpp"

namespace nbdelta::image {

/// The opened, locked files of one layer, its header read.
struct LayerFiles {
  File image;
  std::optional<Qcow2Header> header;  // absent: raw
  /// Where the data is read from, when that is not `image`: the external data file, or the same
  /// file opened with O_DIRECT.
  File data;
};

struct Chain {
  std::vector<LayerFiles> layers;  // the image itself first
  std::string missing_backing;     // as Disk::missing_backing()
};

/// Opens an image and what is permitted of the files behind it.
Chain open_chain(const std::string& path, const OpenOptions& options);

}  // namespace nbdelta::image
