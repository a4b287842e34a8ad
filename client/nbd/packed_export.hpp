#pragma once

#include <optional>

#include "client/nbd/source.hpp"
#include "image/packed.hpp"

namespace nbdelta::client::nbd {

/// What a packed export begins with (docs/extents.md, "Packed exports").
struct PackedExport {
  image::PackedLayout layout;
  image::ExtentMap map;  // as read_map()'s
};

/// Turns a source that is connected to a changed view of nbdkit-delta-plugin to the packed export
/// beside it. None where there is no such view, no such export, or one that does not fit the view:
/// the source is then connected as it was. Throws Error where even that fails.
std::optional<PackedExport> turn_to_packed(Source& source);

/// From there back to the view.
void turn_back(Source& source, const Export& view);

}  // namespace nbdelta::client::nbd
