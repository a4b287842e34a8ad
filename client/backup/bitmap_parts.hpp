#pragma once

#include <string>
#include <vector>

#include "qapi/block_nodes.hpp"

/// A restore point's bitmap does not record while a session by bitmap is open, and the session's
/// own does: what has changed since the restore point is in both. Pure.
namespace nbdelta::client::backup {

/// Those of later sessions of the same chain that can be merged into `bitmap`, by name.
std::vector<std::string> later_parts(const qapi::BitmapInfo& bitmap,
                                     const std::vector<qapi::BitmapInfo>& all);

/// Whether nothing is missing in `bitmap` and the later ones together. A session's switch disables
/// the last bitmap and starts the next one at the same instant; one that is disabled alone (by
/// somebody else) has a gap.
bool is_complete(const qapi::BitmapInfo& bitmap, const std::vector<qapi::BitmapInfo>& all);

}  // namespace nbdelta::client::backup
