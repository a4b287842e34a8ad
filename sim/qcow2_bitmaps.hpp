#pragma once

#include <vector>

#include "base/file.hpp"
#include "image/qcow2_header.hpp"
#include "sim/image.hpp"
#include "sim/qcow2_header_file.hpp"
#include "sim/qcow2_refcounts.hpp"

namespace nbdelta::sim {

/// The persistent bitmaps of a qcow2 file. Their granularity in the file may be any; a bit that
/// stands for several granules, or for a part of one, counts for all of them. What is in use
/// cannot be trusted, and comes without a bit.
std::vector<StoredBitmap> read_bitmaps(const File& file, std::uint64_t granules);

/// Puts these in the place of those that are there, in an order that a crash may interrupt: what
/// is there goes when nothing leads to it any more. Writes refcounts and header too.
void write_bitmaps(const File& file, Qcow2HeaderFile& header, Qcow2Refcounts& refcounts,
                   const std::vector<StoredBitmap>& bitmaps);

}  // namespace nbdelta::sim
