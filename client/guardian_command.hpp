#pragma once

#include <CLI/CLI.hpp>

#include <functional>

namespace nbdelta::client {

/// `nbdelta guardian`, which a session starts: its stdin is the socket to the session.
std::function<int()> add_guardian_command(CLI::App& app);
/// `nbdelta commit-guard`, likewise.
std::function<int()> add_commit_guard_command(CLI::App& app);

}  // namespace nbdelta::client
