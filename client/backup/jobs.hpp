#pragma once

#include <functional>
#include <optional>
#include <string>

#include "client/backup/names.hpp"
#include "client/qmp/client.hpp"
#include "qapi/job_commands.hpp"

namespace nbdelta::client::backup {

enum class CommitEnd : std::uint8_t {
  committed,
  not_ready,  // the guest writes faster than the job copies; it was cancelled
};

/// What an active commit asks of the session.
struct CommitHooks {
  std::function<void()> before_complete = [] {};  // the guest moves to the base from here on
  std::function<void()> committed = [] {};        // it has; the job is not dismissed yet
};

/// Commits `top`, what is between, and what the guest writes meanwhile, into `base`, and moves the
/// guest there. Throws Error with what the job said; the guest is where it was then.
asio::awaitable<CommitEnd> commit_active(qmp::Client& qmp, std::string job, std::string top,
                                         std::string base, Clock::Duration ready_deadline,
                                         CommitHooks hooks);

/// Commits `top` and what is between into `base`, all of which the guest only reads, since it
/// writes to `active` above them. `base_path` becomes the backing file of what is above `top`.
asio::awaitable<void> commit_below(qmp::Client& qmp, std::string job, std::string active,
                                   std::string top, std::string base, std::string base_path);

/// Cancels or dismisses each job of ours; says which.
asio::awaitable<std::vector<std::string>> end_jobs(qmp::Client& qmp,
                                                   std::function<bool(const SessionId&)> is_ours);

}  // namespace nbdelta::client::backup
