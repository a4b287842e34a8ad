#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "client/backup/commit_guard.hpp"
#include "client/backup/real/environment.hpp"
#include "tests/client/backup/conversation.hpp"

namespace nbdelta::client::backup {

inline constexpr const char* kJob = "nbdelta-0123abcd-0002-0-a";

/// What QEMU answers to query-jobs.
inline std::string job(const std::string& status, const std::string& error = {}) {
  return std::string("[{\"id\": \"") + kJob + "\", \"type\": \"commit\", \"status\": \"" + status +
         "\", \"current-progress\": 1, \"total-progress\": 1" +
         (error.empty() ? "" : ", \"error\": \"" + error + "\"") + "}]";
}

/// A command that QEMU gets, and what it says.
struct Answer {
  std::string command;
  std::string answer;
  Clock::Duration after{};
};
using Answers = std::vector<Answer>;

/// QEMU's part.
inline asio::awaitable<void> answer_all(Peer& peer, Clock& clock, Answers answers) {
  for (const Answer& each : answers) {
    const qapi::Command command = co_await peer.command();
    EXPECT_EQ(command.name, each.command);
    co_await clock.wait(each.after);
    co_await peer.reply(command, each.answer);
  }
}

/// What a commit needs: this machine's files, and a guard whose channel and QEMU are the test's.
class GuardedEnvironment final : public Environment {
 public:
  GuardedEnvironment(asio::io_context& loop, Clock& clock)
      : real_(real_environment(loop, {}, {})), clock_(&clock) {}

  std::unique_ptr<qmp::Channel> guard;  // the session's end
  /// The guard connects to QEMU; null: nobody listens.
  std::function<std::unique_ptr<qmp::Channel>()> connect = [] { return nullptr; };

  Clock& clock() override { return *clock_; }
  Files& files() override { return real_->files(); }
  std::int64_t wall_clock() override { return real_->wall_clock(); }
  std::uint64_t random() override { return real_->random(); }
  asio::awaitable<std::unique_ptr<qmp::Channel>> connect_qmp(std::string address) override {
    std::unique_ptr<qmp::Channel> channel = connect();
    if (!channel)
      fail(ECONNREFUSED, "{}: nobody listens", address);
    co_return channel;
  }
  std::unique_ptr<qmp::Channel> start_guardian(const std::string& address) override {
    return real_->start_guardian(address);
  }
  std::unique_ptr<qmp::Channel> start_commit_guard() override {
    if (!guard)
      fail(EAGAIN, "no process can be started");
    return std::move(guard);
  }
  asio::awaitable<std::unique_ptr<Server>> serve(ServeRequest request) override {
    return real_->serve(std::move(request));
  }
  unsigned end_servers(const std::set<std::string>& images,
                       const std::function<bool(const SessionId&)>& is_ours) override {
    return real_->end_servers(images, is_ours);
  }
  void remove_temporary(const std::function<bool(const SessionId&)>& is_ours) override {
    real_->remove_temporary(is_ours);
  }
  asio::awaitable<PullResult> pull(PullRequest request, pull::Counters& counters) override {
    return real_->pull(std::move(request), counters);
  }
  void commit_offline(const std::string& overlay) override { real_->commit_offline(overlay); }
  void remove_bitmap_offline(const std::string& image, const std::string& bitmap) override {
    real_->remove_bitmap_offline(image, bitmap);
  }
  bool stop_requested() override { return false; }

 private:
  std::unique_ptr<Environment> real_;
  Clock* clock_;
};

}  // namespace nbdelta::client::backup
