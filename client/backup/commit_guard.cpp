#include "client/backup/commit_guard.hpp"

#include <chrono>
#include <optional>
#include <utility>

#include "client/backup/jobs.hpp"
#include "client/qmp/line_reader.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;

constexpr Clock::Duration kTurn = 1s;      // a sign of life in each
constexpr Clock::Duration kPause = 100ms;  // between two attempts to reach QEMU
constexpr Clock::Duration kGone = 60s;     // refused all that time: QEMU is gone

struct Alive {
  static constexpr std::string_view kName = "alive";
  using Result = qapi::Nothing;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

struct Release {
  static constexpr std::string_view kName = "release";
  using Result = qapi::Nothing;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// The job is to be ended now. Answered when that is done.
struct TakeOver {
  static constexpr std::string_view kName = "take-over";
  using Result = qapi::Nothing;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// The session's next command; nothing where it has died. One that says nothing is killed. Its
/// silence is counted in turns of ours: where both of us are stopped together, or get no processor,
/// it has as many left as before.
asio::awaitable<std::optional<std::string>> next_sign(qmp::LineReader& lines, Clock& clock,
                                                      const std::function<void()>& kill_session) {
  for (Clock::Duration silence{}; silence < CommitGuard::kPatience; silence += kTurn) {
    try {
      co_return co_await before(clock, clock.now() + kTurn, lines.next(), "silence");
    } catch (const TimedOut&) {
    }
  }
  kill_session();
  co_return co_await lines.next();  // until it is dead indeed
}

asio::awaitable<void> answer(qmp::Channel& session, std::string line) {
  try {
    co_await session.send(std::move(line));
  } catch (const qmp::ChannelLost&) {  // it has died, which the next line says
  }
}

/// What forwards QEMU's channel takes connections when QEMU has gone, and closes them.
asio::awaitable<void> open(qmp::Client& qmp) {
  try {
    co_await qmp.open();
  } catch (const qmp::ChannelLost& error) {
    fail(ECONNREFUSED, "{}", error.what());
  }
}

/// QEMU serves one client at a time: it takes us when the dead session's connection is closed.
asio::awaitable<void> end_watched(Environment& environment, const CommitWatch& watch) {
  qmp::Client qmp(co_await environment.connect_qmp(watch.qmp), environment.clock());
  co_await open(qmp);
  co_await end_active(qmp, environment.files(), watch.job, watch.overlay_local);
  co_await resume_guest(qmp, is_of(watch.job));
}

}  // namespace

asio::awaitable<void> CommitGuard::during(asio::awaitable<void> operation) {
  std::exception_ptr lost;
  try {
    co_await either(std::move(operation), give_signs());
  } catch (const qmp::ChannelLost&) {
    lost = std::current_exception();
  }
  if (!lost)
    co_return;
  try {
    co_await client_.call(TakeOver{}, kStart);
  } catch (const Error&) {  // it has died, or does not reach QEMU either
  }
  std::rethrow_exception(lost);
}

/// Until it is cancelled.
asio::awaitable<void> CommitGuard::give_signs() {
  while (true) {
    try {
      co_await client_.call(Alive{}, kStart);
    } catch (const Error&) {  // it has died, and kills nobody
    }
    co_await client_.clock().wait(kTurn);
  }
}

asio::awaitable<void> CommitGuard::release() {
  try {
    co_await client_.call(Release{}, kStart);
  } catch (const Error&) {  // it looks for a job that has ended, then
  }
}

asio::awaitable<void> guard_commit(Environment& environment, std::unique_ptr<qmp::Channel> session,
                                   std::function<void()> kill_session) {
  qmp::LineReader lines(*session);
  CommitWatch watch;
  std::string done_for_it;  // the answer to a session that waits for the job's end
  while (done_for_it.empty()) {
    std::optional<std::string> line;
    if (watch.job.empty())  // nothing waits for the session yet
      line = co_await lines.next();
    else
      line = co_await next_sign(lines, environment.clock(), kill_session);
    if (!line)
      break;
    const qapi::Command command = qapi::parse_command(*line);
    if (command.name == CommitWatch::kName)
      watch = qapi::arguments_of<CommitWatch>(command);
    const qapi::Return done{.value = qapi::to_json(qapi::Nothing{}), .id = command.id};
    std::string reply = qapi::to_line(done) + "\n";
    if (command.name == TakeOver::kName)
      done_for_it = std::move(reply);
    else
      co_await answer(*session, std::move(reply));
    if (command.name == Release::kName)
      co_return;
  }
  std::optional<Clock::Time> refused_since;
  while (!watch.job.empty()) {
    try {
      co_await end_watched(environment, watch);
      if (!done_for_it.empty())
        co_await answer(*session, std::move(done_for_it));
      co_return;
    } catch (const Error& error) {
      const int why = error.error_number();
      if (why != ENOENT && why != ECONNREFUSED)
        refused_since.reset();
      else if (!refused_since)
        refused_since = environment.clock().now();
      else if (environment.clock().now() - *refused_since >= kGone)
        co_return;
    }
    co_await environment.clock().wait(kPause);
  }
}

}  // namespace nbdelta::client::backup
