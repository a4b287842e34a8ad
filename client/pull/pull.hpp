#pragma once

#include <cstdint>
#include <stop_token>

#include "client/nbd/source.hpp"
#include "client/pull/work.hpp"
#include "client/target/target.hpp"

namespace nbdelta::client::pull {

struct Settings {
  // bench/README.md, "Defaults of nbdelta pull", says why.
  unsigned connections = 2;
  unsigned depth = 0;              // on each connection; 0: as many as make 1 MiB, 2 to 64
  std::uint64_t request_size = 0;  // 0: 256 KiB; 1 MiB of long runs of our plugin
  std::uint64_t bridge = 16 * kKiB;
  std::uint64_t rate = 0;  // bytes a second; 0: no limit
  nbd::RetryPolicy retry;
};

/// Copies what the map says into the target, over several connections; the first is `source`, which
/// runs in the calling thread. Each further one is used when it can be had. The target has been
/// prepared; finish() is left to the caller. The first error stops everything, through `stop`, and
/// is thrown once all threads have ended.
void run_pull(nbd::Source& source, target::Target& target, const image::ExtentMap& map,
              const Settings& settings, Counters& counters, std::stop_source& stop);

}  // namespace nbdelta::client::pull
