#pragma once

namespace nbdelta::client {

/// Exit statuses of nbdelta; 128 + N: interrupted by signal N.
enum ExitStatus : int {
  kDone = 0,
  kFailed = 1,   // source, network, disk
  kUsage = 2,    // the command line makes no sense
  kRefused = 3,  // refused as it was asked for: nothing was touched, or it is as before
};

}  // namespace nbdelta::client
