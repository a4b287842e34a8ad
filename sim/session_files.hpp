#pragma once

#include <memory>

#include "client/backup/environment.hpp"
#include "sim/host.hpp"

namespace nbdelta::sim {

/// The files of the host, for one of its processes. Both must outlive it.
std::unique_ptr<client::backup::Files> session_files(Host& host, Process& process);

}  // namespace nbdelta::sim
