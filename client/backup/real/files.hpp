#pragma once

#include <memory>

#include "client/backup/environment.hpp"

namespace nbdelta::client::backup {

/// The files of this machine.
std::unique_ptr<Files> real_files();

}  // namespace nbdelta::client::backup
