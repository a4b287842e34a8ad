#pragma once

#include <cstdint>
#include <string>

#include "image/extent_map.hpp"

namespace nbdelta::plugin {

/// The dirty map of an image that cannot hold one, read whole: `data` is changed, the rest
/// `unchanged`. What the source does not say counts as changed. `disk_size` in bytes; a source
/// for a disk of another size (but for rounding up to 512) is refused.
/// Throws Error that names the source.

/// From an NBD server's metadata context. Gives up on a server that says nothing for a minute.
image::ExtentMap read_map_from_nbd(const std::string& uri, const std::string& context,
                                   std::uint64_t disk_size);

/// From what `nbdinfo --map --json` printed; `context` is which map it is of, or empty where the
/// descriptions tell (dirty and clean; else as a changed view's base:allocation).
image::ExtentMap read_map_from_json(const std::string& path, const std::string& context,
                                    std::uint64_t disk_size);

}  // namespace nbdelta::plugin
