#pragma once

#include <exception>
#include <functional>

namespace nbdelta::sim {

/// Told of a write's end. `error`: null where it went well; ENOSPC pauses a real guest.
using WriteDone = std::function<void(std::exception_ptr error)>;

}  // namespace nbdelta::sim
