#include "client/backup/commit_guard.hpp"

#include <chrono>
#include <optional>
#include <utility>

#include "client/backup/jobs.hpp"
#include "client/qmp/line_reader.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;

constexpr Clock::Duration kPause = 100ms;  // between two attempts to reach QEMU
constexpr Clock::Duration kGone = 60s;     // refused all that time: QEMU is gone

struct Release {
  static constexpr std::string_view kName = "release";
  using Result = qapi::Nothing;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// QEMU serves one client at a time: it takes us when the dead session's connection is closed.
asio::awaitable<void> end_watched(Environment& environment, const CommitWatch& watch) {
  qmp::Client qmp(co_await environment.connect_qmp(watch.qmp), environment.clock());
  co_await qmp.open();
  co_await end_active(qmp, environment.files(), watch.job, watch.overlay_local);
}

}  // namespace

asio::awaitable<void> CommitGuard::release() {
  try {
    co_await client_.call(Release{}, kStart);
  } catch (const Error&) {  // it looks for a job that has ended, then
  }
}

asio::awaitable<void> guard_commit(Environment& environment,
                                   std::unique_ptr<qmp::Channel> session) {
  qmp::LineReader lines(*session);
  CommitWatch watch;
  while (const std::optional<std::string> line = co_await lines.next()) {
    const qapi::Command command = qapi::parse_command(*line);
    if (command.name == CommitWatch::kName)
      watch = qapi::arguments_of<CommitWatch>(command);
    const qapi::Return done{.value = qapi::to_json(qapi::Nothing{}), .id = command.id};
    std::string reply = qapi::to_line(done) + "\n";
    co_await session->send(std::move(reply));
    if (command.name == Release::kName)
      co_return;
  }
  std::optional<Clock::Time> refused_since;
  while (!watch.job.empty()) {
    try {
      co_await end_watched(environment, watch);
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
