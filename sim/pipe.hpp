#pragma once

#include <memory>
#include <string>
#include <utility>

#include "client/qmp/channel.hpp"
#include "sim/process.hpp"

namespace nbdelta::sim {

/// The two ends of a connection between two processes, which may be the same; each calls the other
/// by `name`. An end that is destroyed is seen as closed by the other, after what it has sent. What
/// is sent arrives `latency` later.
std::pair<std::unique_ptr<client::qmp::Channel>, std::unique_ptr<client::qmp::Channel>> make_pipe(
    Process& one, Process& other, const std::string& name, Clock::Duration latency = {});

}  // namespace nbdelta::sim
