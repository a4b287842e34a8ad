#pragma once

namespace nbdelta::client {

/// Exit statuses of nbdelta; 128 + N: interrupted by signal N.
enum ExitStatus : int {
  kDone = 0,
  kFailed = 1,   // source, network, disk
  kUsage = 2,    // the command line makes no sense
  kRefused = 3,  // the target cannot or must not be written to, or has no space; it was not touched
};

}  // namespace nbdelta::client
