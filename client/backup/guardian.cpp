#include "client/backup/guardian.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "client/backup/breaks.hpp"
#include "qapi/agent_commands.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;
namespace agent = qapi::agent;

constexpr Clock::Duration kSynchronise = 5s;  // for an agent that is not busy
constexpr Clock::Duration kPresync = 30s;
constexpr Clock::Duration kPresyncPoll = 20ms;
constexpr Clock::Duration kThaw = 10s;     // a guest that thaws writes what was held back
constexpr Clock::Duration kAttempt = 2s;   // of the thaws after a first one that went wrong
constexpr Clock::Duration kConfirm = 20s;  // what a session waits for
constexpr Clock::Duration kLongestPause = 2s;
constexpr Clock::Duration kGuestGone = 60s;  // refused all that time: the guest is gone, and not
                                             // just what forwards its channel

/// What the session reads. Errors of the agent keep their class.
std::string error_line(const std::string& error_class, const std::string& description,
                       const std::optional<qapi::json::value>& id) {
  return qapi::to_line(
      qapi::ErrorReply{.error_class = error_class, .description = description, .id = id});
}

}  // namespace

Guardian::Guardian(Connect connect, std::unique_ptr<qmp::Channel> session, Clock& clock,
                   std::int64_t seed, std::function<void()> session_is_gone)
    : connect_(std::move(connect)),
      session_(std::move(session)),
      clock_(&clock),
      last_id_(seed),
      session_is_gone_(std::move(session_is_gone)) {}

std::int64_t Guardian::microseconds() const {
  return std::chrono::duration_cast<std::chrono::microseconds>(clock_->now().time_since_epoch())
      .count();
}

asio::awaitable<void> Guardian::run() {
  while (true) {
    const std::optional<std::string> line = co_await next_line();
    if (!line)
      break;
    co_await serve(*line);
  }
  session_is_gone_();
  if (!broken("no-thaw-when-session-dies"))
    co_await last_thaw();
}

/// The session's next command; nothing where the session is gone. Thaws meanwhile when it is time.
asio::awaitable<std::optional<std::string>> Guardian::next_line() {
  while (true) {
    if (!frozen_ || broken("no-thaw-at-deadline"))
      co_return co_await lines_.next();
    try {
      co_return co_await before(*clock_, deadline_, lines_.next(), "deadline");
    } catch (const TimedOut&) {
    }
    if (!thawed_)
      thawed_ = guardian::Thawed{.by_deadline = true};
    try {
      co_await try_to_thaw(clock_->now() + kAttempt);
    } catch (const Error&) {  // again, until it works
    }
    deadline_ = clock_->now() + pause_;
  }
}

asio::awaitable<void> Guardian::serve(std::string line) {
  std::optional<qapi::json::value> id;
  std::string reply;
  try {
    const qapi::Command command = qapi::parse_command(line);
    id = command.id;
    qapi::json::value result = co_await carry_out(command);
    reply = qapi::to_line(qapi::Return{.value = std::move(result), .id = id});
  } catch (const qapi::CommandError& error) {
    reply = error_line(error.error_class(), error.what(), id);
  } catch (const Error& error) {
    reply = error_line("GenericError", error.what(), id);
  }
  try {
    co_await session_->send(reply + "\n");
  } catch (const qmp::ChannelLost&) {  // seen at the next line
  }
}

asio::awaitable<qapi::json::value> Guardian::carry_out(qapi::Command command) {
  using qapi::arguments_of;
  using qapi::to_json;
  if (command.name == guardian::Prepare::kName) {
    const auto arguments = arguments_of<guardian::Prepare>(command);
    const guardian::Prepared prepared = co_await prepare(arguments);
    co_return to_json(prepared);
  }
  if (command.name == guardian::Freeze::kName) {
    const auto arguments = arguments_of<guardian::Freeze>(command);
    const guardian::Frozen frozen = co_await freeze(arguments);
    co_return to_json(frozen);
  }
  if (command.name == guardian::Thaw::kName) {
    const guardian::Thawed thawed = co_await thaw();
    co_return to_json(thawed);
  }
  if (command.name == guardian::Confirm::kName) {
    co_await confirm();
    co_return to_json(qapi::Nothing{});
  }
  if (command.name == guardian::Leave::kName) {
    frozen_ = false;
    thawed_.reset();
    co_return to_json(qapi::Nothing{});
  }
  fail(EINVAL, "the guardian does not know '{}'", command.name);
}

asio::awaitable<void> Guardian::ensure_agent(Clock::Time deadline) {
  if (!agent_)
    agent_ = std::make_unique<qmp::Agent>(
        co_await before(*clock_, deadline, connect_(), "the guest agent: cannot be reached"),
        *clock_);
}

asio::awaitable<guardian::Prepared> Guardian::prepare(guardian::Prepare command) {
  const Clock::Time deadline = clock_->now() + kSynchronise;
  co_await ensure_agent(deadline);
  co_await agent_->synchronise(++last_id_, deadline);
  in_step_ = true;
  const std::string status = co_await agent_->call(agent::GuestFsfreezeStatus{}, deadline);
  if (status != "thawed")
    fail(EBUSY,
         "the guest is frozen already (guest-fsfreeze-status says '{}'): by somebody else, or by a "
         "session that was not put right ('nbdelta recover' thaws)",
         status);
  const agent::AgentInfo info = co_await agent_->call(agent::GuestInfo{}, deadline);
  guardian::Prepared prepared{.agent_version = info.version, .presync = {}};
  for (const agent::SupportedCommand& supported : info.supported_commands)
    if (!supported.enabled && supported.name == agent::GuestFsfreezeFreeze::kName)
      fail(EPERM, "the guest agent does not allow {}", supported.name);
  if (command.presync)
    prepared.presync = co_await presync();
  co_return prepared;
}

/// A `sync` in the guest: what is written back now need not be in the window. Never a reason to
/// fail; says what came of it.
asio::awaitable<std::string> Guardian::presync() {
  const Clock::Time deadline = clock_->now() + kPresync;
  try {
    const agent::GuestExec sync{.path = "sync", .arguments = std::nullopt};
    const std::int64_t pid = (co_await agent_->call(sync, deadline)).pid;
    while (true) {
      const agent::GuestExecStatus guest_exec_status{.pid = pid};
      const agent::ProcessStatus status = co_await agent_->call(guest_exec_status, deadline);
      if (status.exited)
        co_return status.exit_code.value_or(1) == 0 ? "done" : "failed in the guest";
      co_await before(*clock_, deadline, clock_->wait(kPresyncPoll), "sync takes long");
    }
  } catch (const qapi::CommandError& error) {
    co_return fmt::format("refused: {}", error.description());
  } catch (const TimedOut& error) {
    in_step_ = false;
    co_return fmt::format("not finished in time: {}", error.what());
  }
}

asio::awaitable<guardian::Frozen> Guardian::freeze(guardian::Freeze command) {
  if (frozen_ || !agent_)
    fail(EINVAL, "the guardian was not asked to prepare, or has not seen the last thaw");
  if (!in_step_)
    co_await agent_->synchronise(++last_id_, clock_->now() + kSynchronise);
  thawed_.reset();
  pause_ = kFirstPause;
  guardian::Frozen frozen{.sent_us = microseconds()};
  deadline_ = clock_->now() + std::chrono::milliseconds(command.deadline_ms);
  frozen_ = true;
  std::string failure;
  try {
    if (command.mountpoints) {
      const agent::GuestFsfreezeFreezeList guest_fsfreeze_freeze_list{.mountpoints =
                                                                          command.mountpoints};
      frozen.file_systems = co_await agent_->call(guest_fsfreeze_freeze_list, deadline_);
    } else
      frozen.file_systems = co_await agent_->call(agent::GuestFsfreezeFreeze{}, deadline_);
    frozen.answered_us = microseconds();
    co_return frozen;
  } catch (const Error& error) {
    failure = error.what();
  }
  if (broken("no-thaw-after-failed-freeze")) {
    frozen_ = false;
    fail(EIO, "{}", failure);
  }
  in_step_ = false;
  thawed_ = guardian::Thawed{.by_deadline = true};
  std::string after = "the guest was thawed at once";
  try {
    co_await try_to_thaw(clock_->now() + kAttempt);
  } catch (const Error& error) {
    after = fmt::format("a thaw was sent and is not confirmed yet ({})", error.what());
    deadline_ = clock_->now();  // go on with that
  }
  fail(EIO, "{}; {}", failure, after);
}

asio::awaitable<guardian::Thawed> Guardian::thaw() {
  if (thawed_)
    co_return *thawed_;
  deadline_ = clock_->now();
  if (!frozen_) {  // somebody before us may have
    frozen_ = true;
    thawed_ = guardian::Thawed{};
    co_await try_to_thaw(clock_->now() + kThaw);
    co_return *thawed_;
  }
  guardian::Thawed thawed{.sent_us = microseconds()};
  try {
    thawed.file_systems = co_await agent_->call(agent::GuestFsfreezeThaw{}, clock_->now() + kThaw);
  } catch (...) {
    in_step_ = false;
    thawed_ = thawed;
    throw;
  }
  thawed.answered_us = microseconds();
  thawed_ = thawed;
  deadline_ = clock_->now() + kAttempt;  // confirm() comes before
  co_return thawed;
}

asio::awaitable<void> Guardian::confirm() {
  const Clock::Time enough = clock_->now() + kConfirm;
  std::string why;
  while (frozen_) {
    try {
      if (in_step_)
        co_await ask_status(clock_->now() + kAttempt);
      else
        co_await try_to_thaw(clock_->now() + kAttempt);
      continue;
    } catch (const Error& error) {
      why = error.what();
    }
    if (clock_->now() > enough)
      fail(ETIMEDOUT, "the guest may still be frozen: {}; the guardian goes on trying", why);
    co_await clock_->wait(pause_);
  }
}

/// Throws where the agent does not say that the guest is thawed.
asio::awaitable<void> Guardian::ask_status(Clock::Time deadline) {
  in_step_ = false;
  const std::string status = co_await agent_->call(agent::GuestFsfreezeStatus{}, deadline);
  if (status != "thawed")
    fail(EBUSY, "guest-fsfreeze-status says '{}'", status);
  in_step_ = true;
  frozen_ = false;
}

/// One attempt with an agent that may not answer: the thaw goes out with the synchronisation.
asio::awaitable<void> Guardian::try_to_thaw(Clock::Time deadline) {
  pause_ = std::min(2 * pause_, kLongestPause);
  in_step_ = false;
  try {
    co_await ensure_agent(deadline);
    const std::int64_t sent = microseconds();
    if (thawed_ && thawed_->sent_us == 0)
      thawed_->sent_us = sent;
    const qapi::Command thaw = qapi::to_command(agent::GuestFsfreezeThaw{});
    co_await agent_->synchronise(++last_id_, deadline, thaw);
    std::int64_t thawed = 0;
    try {
      const qapi::json::value answer = co_await agent_->answer(thaw.name, deadline);
      thawed = qapi::result_from<agent::GuestFsfreezeThaw>(answer);
    } catch (const qapi::CommandError&) {  // what counts is the status
    }
    if (thawed_ && thawed_->answered_us == 0) {
      thawed_->file_systems = thawed;
      thawed_->answered_us = microseconds();
    }
    co_await ask_status(deadline);
  } catch (const qmp::ChannelLost&) {
    agent_.reset();
    throw;
  }
}

/// The session is gone.
asio::awaitable<void> Guardian::last_thaw() {
  std::optional<Clock::Time> refused_since;
  while (frozen_) {
    try {
      co_await try_to_thaw(clock_->now() + kAttempt);
      continue;
    } catch (const Error& error) {
      const int why = error.error_number();
      if (agent_ || (why != ENOENT && why != ECONNREFUSED))
        refused_since.reset();
      else if (!refused_since)
        refused_since = clock_->now();
      else if (clock_->now() - *refused_since >= kGuestGone)
        fail(why, "the guest may be frozen, and its agent's channel is gone: {}", error.what());
    }
    co_await clock_->wait(pause_);
  }
}

}  // namespace nbdelta::client::backup
