#pragma once

#include "client/nbd/source.hpp"
#include "image/extent_map.hpp"

namespace nbdelta::client::nbd {

/// Reads the map of the whole export, in regions of which several are asked for at once; a lost
/// connection is made anew, and those regions are asked for again.
///
/// Of an export that shows changes: data (changed), zero (changed, reads zero), unchanged. Of any
/// other: data, zero, hole; without base:allocation all of it is data. What a server says is
/// checked; nonsense is an Error (EPROTO) that names server and offset. Memory is bounded by the
/// map's own limit and kRegions regions' of 128 MiB, replies that say nothing new by kIdleReplies.
image::ExtentMap read_map(Source& source);

}  // namespace nbdelta::client::nbd
