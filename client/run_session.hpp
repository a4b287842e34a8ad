#pragma once

#include <functional>

#include "client/asio.hpp"
#include "client/backup/environment.hpp"
#include "client/guest_options.hpp"

namespace nbdelta::client {

/// Runs a session's coroutine to its end. SIGINT, SIGTERM and SIGHUP ask it to end early, which
/// still puts everything right; a second one ends the process at once. Throws what `job` throws;
/// returns 128 + the signal's number where one came and the job failed for it, otherwise 0. A
/// failure is also printed on stdout where the options ask for JSON.
int run_session(const GuestOptions& options,
                const std::function<asio::awaitable<void>(backup::Environment& environment)>& job,
                const std::function<void()>& tick);

}  // namespace nbdelta::client
