#pragma once

#include <cstdint>

#include "qapi/message.hpp"

namespace nbdelta::sim {

/// How many disks a command switches: the snapshots of a transaction, which nobody need have looked
/// at yet. 0 of any other command.
std::int64_t snapshots_in(const qapi::Command& command);

}  // namespace nbdelta::sim
