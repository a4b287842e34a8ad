// A commit counts only where the guest has moved, whatever became of the job; and the overlay is
// marked as committed only while the job holds the guest's writes back.

#include "client/backup/jobs.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "client/backup/overlay_files.hpp"
#include "tests/client/backup/guarded_environment.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;

constexpr const char* kJob = "nbdelta-0123abcd-0002-0-a";
constexpr const char* kGreeting =
    R"({"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""},)"
    R"( "capabilities": []}})";

std::string job(const std::string& status, const std::string& error = {}) {
  return std::string("[{\"id\": \"") + kJob + "\", \"type\": \"commit\", \"status\": \"" + status +
         "\", \"current-progress\": 1, \"total-progress\": 1" +
         (error.empty() ? "" : ", \"error\": \"" + error + "\"") + "}]";
}

/// The one disk has this node on top.
std::string devices(const std::string& top) {
  return R"([{"device": "vda", "locked": false, "removable": false, "inserted": {"node-name": ")" +
         top +
         R"(", "drv": "qcow2", "file": "/x", "ro": false, "backing_file_depth": 0, )"
         R"("write_threshold": 0, "image": {"filename": "/x", "format": "qcow2", )"
         R"("virtual-size": 1024}}}])";
}

using Answers = std::vector<std::pair<std::string, std::string>>;

/// What QEMU says, and what must come of it.
struct Row {
  const char* name;
  Answers answers;      // to which command
  std::string outcome;  // "committed", "not_ready", or a part of the error
  bool marked;          // afterwards
};

class Jobs : public Conversation {
 protected:
  void answer(Peer& peer, const Answers& answers) {
    spawn([&]() -> asio::awaitable<void> {
      for (const auto& [command, answer] : answers) {
        const std::string name = co_await peer.answer(answer);
        EXPECT_EQ(name, command);
        EXPECT_TRUE(command != "job-finalize" || is_committed(files_, overlay_));
      }
    });
  }

  void start_guard() {
    Ends ends = connection("the guard");
    environment_.guard = std::move(ends.first);
    guard_end_ = std::move(ends.second);
    spawn_server([this]() -> asio::awaitable<void> {
      co_await guard_commit(environment_, std::move(guard_end_));
    });
  }

  void expect(const Row& row) {
    SCOPED_TRACE(row.name);
    unmark_committed(files_, overlay_);
    start_guard();
    Ends ends = connection("QMP at here");
    qmp::Client client(std::move(ends.first), clock_);
    Peer peer(std::move(ends.second));
    std::string outcome;
    spawn([&]() -> asio::awaitable<void> {
      const ActiveCommit commit{.job = kJob,
                                .top = "overlay",
                                .base = "base",
                                .overlay_local = overlay_,
                                .qmp_address = "here",
                                .ready_deadline = 10s};
      try {
        const CommitEnd end = co_await commit_active(client, environment_, commit);
        outcome = end == CommitEnd::committed ? "committed" : "not_ready";
      } catch (const Error& error) {
        outcome = error.what();
      }
    });
    answer(peer, row.answers);
    run();
    EXPECT_IN(row.outcome, outcome);
    EXPECT_EQ(is_committed(files_, overlay_), row.marked);
  }

  /// The session has died; what the guard does then.
  void expect_of_guard(bool marked, const Answers& answers, bool marked_after) {
    const std::string greeting = kGreeting;
    if (marked)
      mark_committed(files_, overlay_);
    start_guard();
    Ends ends = connection("QMP at here");
    environment_.qmp = std::move(ends.first);
    Peer peer(std::move(ends.second));
    spawn([&]() -> asio::awaitable<void> {
      {
        CommitGuard guard(environment_);
        const CommitWatch watch{.qmp = "here", .job = kJob, .overlay_local = overlay_};
        co_await guard.watch(watch);
      }
      co_await peer.send(greeting + "\n");
      for (const auto& [command, answer] : answers) {
        const std::string name = co_await peer.answer(answer);
        EXPECT_EQ(name, command);
      }
    });
    run();
    EXPECT_EQ(is_committed(files_, overlay_), marked_after);
  }

  testing::TempFolder folder_;
  std::string overlay_ = folder_ / "nbdelta-0123abcd-0002-vda.qcow2";
  GuardedEnvironment environment_{loop_, clock_};
  Files& files_ = environment_.files();
  std::unique_ptr<qmp::Channel> guard_end_;
};

TEST_F(Jobs, ACommitIsJudgedByWhereTheGuestIs) {
  const Row kRows[] = {
      {"the_usual",
       {{"block-commit", "{}"},
        {"query-jobs", job("running")},
        {"query-jobs", job("ready")},
        {"job-complete", "{}"},
        {"query-jobs", job("waiting")},
        {"query-jobs", job("pending")},
        {"job-finalize", "{}"},
        {"query-jobs", job("concluded")},
        {"query-jobs", job("concluded")},
        {"job-dismiss", "{}"},
        {"query-block", devices("base")}},
       "committed",
       true},
      {"ended_by_somebody_else_before_it_was_seen_to_be_ready",
       {{"block-commit", "{}"},
        {"query-jobs", job("pending")},
        {"query-jobs", job("pending")},
        {"job-cancel", "{}"},
        {"query-jobs", job("concluded", "Operation canceled")},
        {"job-dismiss", "{}"},
        {"query-block", devices("overlay")}},
       "somebody else has ended the job",
       false},
      {"disk_taken_away_meanwhile",
       {{"block-commit", "{}"},
        {"query-jobs", job("concluded")},
        {"query-jobs", job("concluded")},
        {"job-dismiss", "{}"},
        {"query-block", "[]"}},
       "without moving the guest to base",
       false},
      {"completed_by_somebody_else",
       {{"block-commit", "{}"},
        {"query-jobs", job("concluded")},
        {"query-jobs", job("concluded")},
        {"job-dismiss", "{}"},
        {"query-block", devices("base")}},
       "committed",
       true},
      {"finalized_without_moving",
       {{"block-commit", "{}"},
        {"query-jobs", job("ready")},
        {"job-complete", "{}"},
        {"query-jobs", job("pending")},
        {"job-finalize", "{}"},
        {"query-jobs", job("concluded", "Operation canceled")},
        {"query-jobs", job("concluded", "Operation canceled")},
        {"job-dismiss", "{}"},
        {"query-block", devices("overlay")}},
       "the commit failed: Operation canceled",
       false},
      {"failed",
       {{"block-commit", "{}"},
        {"query-jobs", job("concluded", "No space left on device")},
        {"query-jobs", job("concluded", "No space left on device")},
        {"job-dismiss", "{}"},
        {"query-block", devices("overlay")}},
       "the commit failed: No space left on device",
       false},
      {"failed_in_the_end",
       {{"block-commit", "{}"},
        {"query-jobs", job("ready")},
        {"job-complete", "{}"},
        {"query-jobs", job("concluded", "Input/output error")},
        {"query-jobs", job("concluded", "Input/output error")},
        {"job-dismiss", "{}"},
        {"query-block", devices("overlay")}},
       "the commit failed: Input/output error",
       false},
      {"dismissed_by_somebody_else",
       {{"block-commit", "{}"},
        {"query-jobs", "[]"},
        {"query-jobs", "[]"},
        {"query-block", devices("overlay")}},
       "does not know the job",
       false},
  };
  for (const Row& row : kRows)
    expect(row);
}

TEST_F(Jobs, ACommitThatIsNeverReadyIsCancelled) {
  Answers answers{{"block-commit", "{}"}};
  for (int i = 0; i < 42; ++i)  // four a second
    answers.emplace_back("query-jobs", job("running"));
  answers.insert(answers.end(), {{"query-jobs", job("running")},
                                 {"job-cancel", "{}"},
                                 {"query-jobs", job("concluded", "Operation canceled")},
                                 {"job-dismiss", "{}"}});
  expect({"never_ready", answers, "not_ready", false});
}

TEST_F(Jobs, TheGuardMovesTheGuestWhereTheOverlayIsMarked) {
  expect_of_guard(true,
                  {{"qmp_capabilities", "{}"},
                   {"query-jobs", job("pending")},
                   {"job-finalize", "{}"},
                   {"query-jobs", job("concluded")},
                   {"job-dismiss", "{}"}},
                  true);
}

TEST_F(Jobs, TheGuardLetsTheGuestStayWhereItIsNot) {
  expect_of_guard(false,
                  {{"qmp_capabilities", "{}"},
                   {"query-jobs", job("waiting")},
                   {"query-jobs", job("pending")},
                   {"job-cancel", "{}"},
                   {"query-jobs", job("concluded", "Operation canceled")},
                   {"job-dismiss", "{}"}},
                  false);
}

TEST_F(Jobs, TheGuardTakesTheMarkBackWhereTheMoveFails) {
  expect_of_guard(true,
                  {{"qmp_capabilities", "{}"},
                   {"query-jobs", job("pending")},
                   {"job-finalize", "{}"},
                   {"query-jobs", job("concluded", "Input/output error")},
                   {"job-dismiss", "{}"}},
                  false);
}

TEST_F(Jobs, TheGuardHasNothingToDoAfterTheEnd) {
  expect_of_guard(true, {{"qmp_capabilities", "{}"}, {"query-jobs", "[]"}}, true);
}

}  // namespace
}  // namespace nbdelta::client::backup
