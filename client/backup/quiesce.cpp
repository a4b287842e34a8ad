#include "client/backup/quiesce.hpp"

#include <fmt/format.h>

#include <chrono>
#include <exception>
#include <utility>

#include "client/backup/breaks.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;

constexpr Clock::Duration kPrepare = 60s;  // a sync in the guest may take long
constexpr Clock::Duration kGrace = 15s;    // what the guardian may need beyond its own deadlines
constexpr Clock::Duration kStandIn = 1s;   // between two guardians that die

/// Without the guardian's prefix: "freeze: …".
std::string reason(const Error& error) {
  const auto* answer = dynamic_cast<const qapi::CommandError*>(&error);
  return answer != nullptr ? answer->description() : error.what();
}

}  // namespace

void Quiescence::start(const std::string& agent) {
  guardian_ =
      std::make_unique<qmp::Client>(environment_->start_guardian(agent), environment_->clock());
}

void Quiescence::give_up(const std::string& why) {
  failure_ = why;
  if (options_->quiesce == Quiesce::require)
    refuse(EIO, "the guest cannot be frozen: {}", why);
}

asio::awaitable<void> Quiescence::prepare() {
  if (options_->quiesce == Quiesce::no)
    co_return;
  if (!options_->agent) {
    give_up("no guest agent was given (--agent)");
    co_return;
  }
  std::string why;
  try {
    start(*options_->agent);
    const guardian::Prepare prepare{.presync = options_->presync};
    prepared_ = co_await guardian_->call(prepare, kPrepare);
  } catch (const Error& error) {
    why = reason(error);
  }
  if (!why.empty()) {
    guardian_.reset();
    give_up(why);
  }
}

asio::awaitable<void> Quiescence::freeze(repository::Window& window) {
  if (!guardian_)
    co_return;
  const guardian::Freeze command{.mountpoints = options_->mountpoints,
                                 .deadline_ms = options_->freeze_deadline.count()};
  std::string why;
  deadline_ = environment_->clock().now() + options_->freeze_deadline;
  sent_ = true;
  try {
    const guardian::Frozen frozen =
        co_await guardian_->call(command, options_->freeze_deadline + kGrace);
    window.freeze_sent_us = frozen.sent_us;
    window.freeze_answered_us = frozen.answered_us;
    file_systems_ = frozen.file_systems;
    frozen_ = true;
    if (file_systems_ == 0)
      failure_ = "the agent has frozen no file system";
  } catch (const Error& error) {
    why = reason(error);
  }
  if (!why.empty())
    give_up(why);
}

asio::awaitable<void> Quiescence::during(asio::awaitable<void> operation) {
  if (sent_ && guardian_ && !broken("nobody-stands-in"))
    co_await either(std::move(operation), stand_in());
  else
    co_await std::move(operation);
}

/// Until it is cancelled.
asio::awaitable<void> Quiescence::stand_in() {
  while (true) {
    try {
      while (true)
        co_await guardian_->next_event();  // it sends none
    } catch (const Error&) {               // it has died
    }
    co_await environment_->clock().wait_until(deadline_);
    try {
      co_await replace_guardian();
    } catch (const Error&) {  // it goes on trying, or has died
    }
    deadline_ = environment_->clock().now() + kStandIn;
  }
}

asio::awaitable<void> Quiescence::thaw(repository::Window& window) {
  if (!frozen_)
    co_return;
  try {
    const guardian::Thawed thawed = co_await guardian_->call(guardian::Thaw{});
    window.thaw_sent_us = thawed.sent_us;
    if (thawed.answered_us != 0)
      window.thaw_answered_us = thawed.answered_us;
    thawed_early_ = thawed.sent_us < window.switch_answered_us;
    if (thawed_early_) {
      failure_ = "the guest was thawed at the deadline, before the switch had ended";
    } else if (thawed.file_systems == 0 && file_systems_ > 0 && thawed.answered_us != 0) {
      thawed_early_ = true;
      failure_ = "somebody else thawed the guest before the switch had ended";
    }
  } catch (const qmp::ChannelLost&) {
    thawed_early_ = true;  // nobody saw how long the freeze lasted
    failure_ = "the guardian died";
  } catch (const Error& error) {
    thaw_trouble_ = reason(error);  // the thaw was sent; confirm() goes on
  }
}

asio::awaitable<void> Quiescence::replace_guardian() {
  start(*options_->agent);
  co_await guardian_->call(guardian::Thaw{});
}

asio::awaitable<std::string> Quiescence::confirm() {
  if (!sent_)
    co_return std::string();
  std::string why;
  for (int attempt = 0; attempt < 2; ++attempt) {
    bool lost = false;
    try {
      if (attempt != 0)
        co_await replace_guardian();
      co_await guardian_->call(guardian::Confirm{}, kPrepare);
      guardian_.reset();  // others may want the agent while we copy
      sent_ = false;
      co_return std::string();
    } catch (const qmp::ChannelLost& error) {
      why = "its guardian has died";
      lost = true;
    } catch (const Error& error) {
      why = reason(error);
    }
    if (!lost)
      break;
  }
  co_return why;
}

asio::awaitable<std::int64_t> Quiescence::release(std::string agent, Suspicion suspicion) {
  start(agent);
  std::exception_ptr failure;
  try {
    const guardian::Thawed thawed = co_await guardian_->call(guardian::Thaw{});
    co_await guardian_->call(guardian::Confirm{}, kPrepare);
    guardian_.reset();
    co_return thawed.file_systems;
  } catch (const Error&) {
    failure = std::current_exception();
  }
  if (suspicion == Suspicion::none) {
    try {
      co_await guardian_->call(guardian::Leave{}, kPrepare);
    } catch (const Error&) {  // it has died
    }
    guardian_.reset();
  }
  std::rethrow_exception(failure);
}

void Quiescence::record(repository::Manifest& manifest) const {
  const bool all = frozen() && !options_->mountpoints && file_systems_ > 0;
  manifest.consistency = all ? "application" : "crash";
  manifest.frozen_file_systems = frozen() ? file_systems_ : 0;
  manifest.mountpoints = options_->mountpoints;
  if (!failure_.empty())
    manifest.freeze_failure = failure_;
  if (!prepared_.agent_version.empty())
    manifest.agent_version = prepared_.agent_version;
  if (!prepared_.presync.empty())
    manifest.presync = prepared_.presync;
}

}  // namespace nbdelta::client::backup
