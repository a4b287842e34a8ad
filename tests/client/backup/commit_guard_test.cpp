// Whatever becomes of a session whose commit holds the guest's writes back, its guard lets them go
// on; and it kills nobody whose commit holds nothing back.

#include "client/backup/commit_guard.hpp"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "client/backup/overlay_files.hpp"
#include "tests/client/backup/guarded_environment.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;

constexpr const char* kGreeting =
    R"({"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""},)"
    R"( "capabilities": []}})"
    "\n";

/// What a guard does to end the job of an overlay that is not marked.
const Answers kCancelled{
    {"qmp_capabilities", "{}"}, {"query-jobs", job("pending")},
    {"job-cancel", "{}"},       {"query-jobs", job("concluded", "Operation canceled")},
    {"job-dismiss", "{}"},      {"query-named-block-nodes", "[]"}};

class GuardOfACommit : public Conversation {
 protected:
  /// The guard's process, which run() waits for.
  void start_guard() {
    Ends ends = connection("the guard");
    environment_.guard = std::move(ends.first);
    guard_end_ = std::move(ends.second);
    spawn([this]() -> asio::awaitable<void> {
      co_await guard_commit(environment_, std::move(guard_end_), [this] {
        killed_after_.push_back(clock_.now() - start_);
        session_.reset();
        raw_session_.reset();
      });
      ended_after_ = clock_.now() - start_;
    });
  }

  /// QEMU is there, and takes the guard when the session's connection is closed.
  void start_qemu(Answers answers) {
    Ends ends = connection("QMP at here");
    qemu_.push_back(std::move(ends.first));
    peer_.emplace(std::move(ends.second));
    environment_.connect = [this]() -> std::unique_ptr<qmp::Channel> {
      EXPECT_FALSE(session_) << "the session lives";
      return qemu_.empty() ? nullptr : std::move(qemu_.front());
    };
    spawn([this, answers]() -> asio::awaitable<void> {
      const std::string greeting = kGreeting;
      co_await peer_->send(greeting);
      co_await answer_all(*peer_, clock_, answers);
    });
  }

  asio::awaitable<void> watch() {
    session_.emplace(environment_);
    const CommitWatch watch{.qmp = "here", .job = kJob, .overlay_local = overlay_};
    co_await session_->watch(watch);
    watched_after_ = clock_.now() - start_;
  }

  /// A session whose connection with QEMU is cut while the job is pending.
  void lose_qemu() {
    spawn([this]() -> asio::awaitable<void> {
      co_await watch();
      asio::awaitable<void> step = cut();
      try {
        co_await session_->during(std::move(step));
      } catch (const qmp::ChannelLost&) {
        lost_after_ = clock_.now() - start_;
      }
      session_.reset();
    });
  }
  static asio::awaitable<void> cut() {
    throw qmp::ChannelLost(ECONNRESET, "QEMU has closed the connection");
    co_return;
  }

  /// The session has died; what the guard does then.
  void expect_after_death(bool marked, const Answers& answers, bool marked_after) {
    if (marked)
      mark_committed(files_, overlay_);
    start_guard();
    start_qemu(answers);
    spawn([this]() -> asio::awaitable<void> {
      co_await watch();
      session_.reset();
    });
    run();
    EXPECT_EQ(is_committed(files_, overlay_), marked_after);
    EXPECT_TRUE(killed_after_.empty());
  }

  const Clock::Time start_ = clock_.now();
  testing::TempFolder folder_;
  std::string overlay_ = folder_ / "nbdelta-0123abcd-0002-vda.qcow2";
  GuardedEnvironment environment_{loop_, clock_};
  Files& files_ = environment_.files();
  std::unique_ptr<qmp::Channel> guard_end_;
  std::optional<CommitGuard> session_;
  std::unique_ptr<qmp::Channel> raw_session_;
  std::vector<std::unique_ptr<qmp::Channel>> qemu_;  // its connections with the guard
  std::optional<Peer> peer_;
  Clock::Duration watched_after_{};
  Clock::Duration ended_after_{};
  std::optional<Clock::Duration> lost_after_;
  std::vector<Clock::Duration> killed_after_;
};

TEST_F(GuardOfACommit, LetsTheGuestStayWhereItHasNotMoved) {
  expect_after_death(false,
                     {{"qmp_capabilities", "{}"},
                      {"query-jobs", job("waiting")},
                      {"query-jobs", job("pending")},
                      {"job-cancel", "{}"},
                      {"query-jobs", job("concluded", "Operation canceled")},
                      {"job-dismiss", "{}"},
                      {"query-named-block-nodes", "[]"}},
                     false);
}

TEST_F(GuardOfACommit, TakesTheMarkBackThere) {
  expect_after_death(true, kCancelled, false);
}

TEST_F(GuardOfACommit, LetsAGuestGoOnThatWasStopped) {
  expect_after_death(
      true,
      {{"qmp_capabilities", "{}"},
       {"query-jobs", job("concluded")},
       {"job-dismiss", "{}"},
       {"query-named-block-nodes",
        R"([{"node-name": "nbdelta-0123abcd-0002-s", "drv": "null-co", "file": "null-co://", )"
        R"("ro": false, "backing_file_depth": 0, "write_threshold": 0, "image": {"filename": )"
        R"("null-co://", "format": "null-co", "virtual-size": 1024}}])"},
       {"query-status", R"({"running": false, "status": "paused"})"},
       {"cont", "{}"},
       {"blockdev-del", "{}"}},
      true);
}

TEST_F(GuardOfACommit, LeavesTheMarkWhereTheGuestHasMoved) {
  expect_after_death(true,
                     {{"qmp_capabilities", "{}"},
                      {"query-jobs", job("concluded")},
                      {"job-dismiss", "{}"},
                      {"query-named-block-nodes", "[]"}},
                     true);
}

TEST_F(GuardOfACommit, TakesTheMarkBackWhereTheMoveHasFailed) {
  expect_after_death(true,
                     {{"qmp_capabilities", "{}"},
                      {"query-jobs", job("concluded", "Input/output error")},
                      {"job-dismiss", "{}"},
                      {"query-named-block-nodes", "[]"}},
                     false);
}

TEST_F(GuardOfACommit, HasNothingToDoAfterTheEnd) {
  expect_after_death(
      true, {{"qmp_capabilities", "{}"}, {"query-jobs", "[]"}, {"query-named-block-nodes", "[]"}},
      true);
}

TEST_F(GuardOfACommit, KillsASessionThatGivesNoSignOfLife) {
  start_guard();
  start_qemu(kCancelled);
  spawn([this]() -> asio::awaitable<void> {
    co_await watch();
    asio::awaitable<void> step = clock_.wait(300s);
    co_await session_->during(std::move(step));
    co_await clock_.wait(CommitGuard::kPatience - 1s);
    EXPECT_TRUE(killed_after_.empty());
  });
  run();
  ASSERT_EQ(killed_after_.size(), 1U);
  EXPECT_GE(killed_after_.front(), 300s + CommitGuard::kPatience - 1s);
  EXPECT_LE(killed_after_.front(), 300s + CommitGuard::kPatience + 1s);
}

/// Whoever connects again has QEMU's only connection, and may be stopped with it.
TEST_F(GuardOfACommit, EndsTheJobBeforeASessionGoesOnThatHasLostQemu) {
  start_guard();
  Answers slow = kCancelled;
  slow.back().after = 3s;
  start_qemu(slow);
  environment_.connect = [&] { return std::move(qemu_.front()); };
  lose_qemu();
  run();
  ASSERT_TRUE(lost_after_);
  EXPECT_GE(*lost_after_, 3s);
  EXPECT_LT(*lost_after_, 4s);
  EXPECT_TRUE(killed_after_.empty());
}

TEST_F(GuardOfACommit, KeepsASessionThatHasLostQemuNoLongerThanThatWhereItIsGone) {
  start_guard();
  lose_qemu();
  run();
  ASSERT_TRUE(lost_after_);
  EXPECT_LE(*lost_after_, 11s);
  EXPECT_TRUE(killed_after_.empty());
}

TEST_F(GuardOfACommit, HasPatienceWithASessionThatHoldsNothingBackYet) {
  start_guard();
  spawn([this]() -> asio::awaitable<void> {
    session_.emplace(environment_);
    co_await clock_.wait(600s);
    session_.reset();
  });
  run();
  EXPECT_TRUE(killed_after_.empty());
  EXPECT_EQ(ended_after_, 600s);
}

TEST_F(GuardOfACommit, LeavesASessionAloneThatHasReleasedIt) {
  start_guard();
  spawn([this]() -> asio::awaitable<void> {
    co_await watch();
    co_await session_->release();
    co_await clock_.wait(600s);
  });
  run();
  EXPECT_TRUE(killed_after_.empty());
  EXPECT_LT(ended_after_, 1s);
}

/// Both were stopped, or have waited for a processor.
TEST_F(GuardOfACommit, CountsItsOwnTurns) {
  start_guard();
  spawn([this]() -> asio::awaitable<void> {
    co_await watch();
    co_await clock_.wait(500ms);
    clock_.leap(60s);
    co_await clock_.wait(CommitGuard::kPatience - 2s);
    if (session_)
      co_await session_->release();
  });
  run();
  EXPECT_TRUE(killed_after_.empty());
}

/// The answer to its last sign of life has no reader.
TEST_F(GuardOfACommit, EndsTheJobOfASessionThatDiesWhileItSpeaks) {
  start_guard();
  start_qemu(kCancelled);
  raw_session_ = std::move(environment_.guard);
  spawn([this]() -> asio::awaitable<void> {
    const CommitWatch watch{.qmp = "here", .job = kJob, .overlay_local = overlay_};
    std::string lines = qapi::to_line(qapi::to_command(watch)) + "\n";
    lines += R"({"execute": "alive", "id": 1})"
             "\n";
    co_await raw_session_->send(std::move(lines));
    raw_session_.reset();
  });
  run();
  EXPECT_TRUE(killed_after_.empty());
}

/// `ssh -L`, and QEMU has ended.
TEST_F(GuardOfACommit, EndsWhereTheConnectionIsClosedBeforeTheGreeting) {
  start_guard();
  unsigned attempts = 0;
  environment_.connect = [&] {
    ++attempts;
    return connection("QMP at here").first;
  };
  spawn([this]() -> asio::awaitable<void> {
    co_await watch();
    session_.reset();
  });
  run();
  EXPECT_GE(ended_after_, 60s);
  EXPECT_LE(ended_after_, 61s);
  EXPECT_GT(attempts, 100U);
}

/// Another client is connected, and QEMU takes us later.
TEST_F(GuardOfACommit, WaitsWhereNoGreetingComes) {
  start_guard();
  std::vector<std::unique_ptr<qmp::Channel>> silent;
  start_qemu(kCancelled);
  environment_.connect = [&] {
    if (clock_.now() - start_ > 600s)
      return std::move(qemu_.front());
    Ends ends = connection("QMP at here");
    silent.push_back(std::move(ends.second));
    return std::move(ends.first);
  };
  spawn([this]() -> asio::awaitable<void> {
    co_await watch();
    session_.reset();
  });
  run();
  EXPECT_GT(ended_after_, 600s);
}

}  // namespace
}  // namespace nbdelta::client::backup
