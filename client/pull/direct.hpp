#pragma once

#include <stop_token>

#include "client/asio.hpp"
#include "client/pull/pull.hpp"
#include "client/pull/work.hpp"
#include "client/target/target.hpp"
#include "image/disk.hpp"
#include "image/extent_map.hpp"
#include "image/known_runs.hpp"

namespace nbdelta::client::pull {

/// As run_pull(), from an image that this process has open: by the kernel alone where source and
/// target are files that it can copy between, else by reading and writing. Of the settings it takes
/// `connections`, as the number of threads, and `rate`. `loop` is the one that the target was
/// prepared with; nobody else runs it meanwhile. `known`: what read_map() has found.
void run_direct(asio::io_context& loop, const image::Disk& disk, const image::KnownRuns& known,
                target::Target& target, const image::ExtentMap& map, const Settings& settings,
                Counters& counters, std::stop_source& stop);

}  // namespace nbdelta::client::pull
