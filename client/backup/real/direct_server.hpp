#pragma once

#include <memory>

#include "client/backup/environment.hpp"

namespace nbdelta::client::backup {

/// Serves nothing: its URIs (`delta:`) have the pull open the image itself. See
/// ServeRequest::direct.
std::unique_ptr<Server> direct_server(ServeRequest request);

}  // namespace nbdelta::client::backup
