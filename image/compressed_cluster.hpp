#pragma once

#include <cstddef>
#include <span>

#include "image/qcow2_format.hpp"

namespace nbdelta::image {

/// Decompresses one qcow2 cluster (qcow2 specification, "Compressed Clusters Descriptor") so that
/// `cluster` is full. `compressed` may be longer than the stream in it: only whole sectors are
/// recorded. Returns false where the stream is damaged or ends too early.
bool decompress_cluster(qcow2::Compression compression, std::span<const std::byte> compressed,
                        std::span<std::byte> cluster);

}  // namespace nbdelta::image
