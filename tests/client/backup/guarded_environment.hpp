#pragma once

#include <memory>
#include <set>
#include <string>
#include <utility>

#include "client/backup/commit_guard.hpp"
#include "client/backup/real/environment.hpp"
#include "tests/client/backup/conversation.hpp"

namespace nbdelta::client::backup {

/// What a commit needs: this machine's files, and a guard whose channel and QEMU are the test's.
class GuardedEnvironment final : public Environment {
 public:
  GuardedEnvironment(asio::io_context& loop, Clock& clock)
      : real_(real_environment(loop, {}, {})), clock_(&clock) {}

  std::unique_ptr<qmp::Channel> guard;  // the session's end
  std::unique_ptr<qmp::Channel> qmp;    // the guard's; null: QEMU is gone

  Clock& clock() override { return *clock_; }
  Files& files() override { return real_->files(); }
  std::int64_t wall_clock() override { return real_->wall_clock(); }
  std::uint64_t random() override { return real_->random(); }
  asio::awaitable<std::unique_ptr<qmp::Channel>> connect_qmp(std::string address) override {
    if (!qmp)
      fail(ECONNREFUSED, "{}: nobody listens", address);
    co_return std::move(qmp);
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
  asio::awaitable<PullResult> pull(PullRequest request, pull::Counters& counters) override {
    return real_->pull(std::move(request), counters);
  }
  void commit_offline(const std::string& overlay) override { real_->commit_offline(overlay); }
  bool stop_requested() override { return false; }

 private:
  std::unique_ptr<Environment> real_;
  Clock* clock_;
};

}  // namespace nbdelta::client::backup
