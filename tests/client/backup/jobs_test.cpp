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

/// The one disk has this node on top.
std::string devices(const std::string& top) {
  return R"([{"device": "vda", "locked": false, "removable": false, "inserted": {"node-name": ")" +
         top +
         R"(", "drv": "qcow2", "file": "/x", "ro": false, "backing_file_depth": 0, )"
         R"("write_threshold": 0, "image": {"filename": "/x", "format": "qcow2", )"
         R"("virtual-size": 1024}}}])";
}

/// QEMU has this node.
std::string nodes(const std::string& name) {
  return R"([{"node-name": ")" + name +
         R"(", "drv": "null-co", "file": "null-co://", "ro": false, "backing_file_depth": 0, )"
         R"("write_threshold": 0, "image": {"filename": "null-co://", "format": "null-co", )"
         R"("virtual-size": 1024}}])";
}

std::string run_state(const std::string& status) {
  return R"({"running": )" + std::string(status == "running" ? "true" : "false") +
         R"(, "status": ")" + status + R"("})";
}

/// What QEMU says, and what must come of it.
struct Row {
  const char* name;
  Answers answers;
  std::string outcome;  // "committed", "not_ready", or a part of the error
  bool marked;          // afterwards
  bool stops_guest = false;
};

class Jobs : public Conversation {
 protected:
  /// It has nothing to do: QEMU answers.
  void start_guard() {
    environment_.connect = [] {
      ADD_FAILURE() << "the guard was not released";
      return nullptr;
    };
    Ends ends = connection("the guard");
    environment_.guard = std::move(ends.first);
    guard_end_ = std::move(ends.second);
    spawn_server([this]() -> asio::awaitable<void> {
      co_await guard_commit(environment_, std::move(guard_end_),
                            [] { ADD_FAILURE() << "the session is killed"; });
    });
  }

  void expect(const Row& row) {
    SCOPED_TRACE(row.name);
    unmark_committed(files_, overlay_);
    files_.write_text(overlay_, "");
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
                                .ready_deadline = 10s,
                                .stops_guest = row.stops_guest};
      try {
        const CommitEnd end = co_await commit_active(client, environment_, commit);
        outcome = end == CommitEnd::committed ? "committed" : "not_ready";
      } catch (const Error& error) {
        outcome = error.what();
      }
    });
    spawn([&]() -> asio::awaitable<void> {
      for (const Answer& each : row.answers) {
        const Answers one{each};
        co_await answer_all(peer, clock_, one);
        EXPECT_TRUE(each.command != "job-finalize" || is_committed(files_, overlay_));
      }
    });
    run();
    EXPECT_IN(row.outcome, outcome);
    EXPECT_EQ(is_committed(files_, overlay_), row.marked);
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
        {"query-named-block-nodes", "[]"},
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
        {"query-named-block-nodes", "[]"},
        {"job-finalize", "{}"},
        {"query-jobs", job("concluded", "Operation canceled")},
        {"query-jobs", job("concluded", "Operation canceled")},
        {"job-dismiss", "{}"},
        {"query-jobs", "[]"},
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
        {"query-jobs", "[]"},
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

TEST_F(Jobs, AGuestThatWasStoppedGoesOn) {
  const std::string mark = "nbdelta-0123abcd-0002-s";
  expect({"the_usual",
          {{"block-commit", "{}"},
           {"query-jobs", job("ready")},
           {"query-status", run_state("running")},
           {"blockdev-add", "{}"},
           {"stop", "{}"},
           {"query-jobs", job("standby")},
           {"query-jobs", job("ready")},
           {"query-status", run_state("paused")},
           {"job-complete", "{}"},
           {"query-jobs", job("pending")},
           {"query-named-block-nodes", "[]"},
           {"query-status", run_state("prelaunch")},
           {"job-finalize", "{}"},
           {"query-jobs", job("concluded")},
           {"query-named-block-nodes", nodes(mark)},
           {"query-status", run_state("prelaunch")},
           {"cont", "{}"},
           {"blockdev-del", "{}"},
           {"query-jobs", job("concluded")},
           {"job-dismiss", "{}"},
           {"query-block", devices("base")}},
          "committed",
          true,
          true});
  expect({"somebody_else_has_stopped_it",
          {{"block-commit", "{}"},
           {"query-jobs", job("ready")},
           {"query-status", run_state("paused")},
           {"query-status", run_state("paused")},
           {"job-complete", "{}"},
           {"query-jobs", job("pending")},
           {"query-named-block-nodes", "[]"},
           {"query-status", run_state("paused")},
           {"job-finalize", "{}"},
           {"query-jobs", job("concluded")},
           {"query-named-block-nodes", nodes("nbdelta-0123abcd-0003-s")},
           {"query-jobs", job("concluded")},
           {"job-dismiss", "{}"},
           {"query-block", devices("base")}},
          "committed",
          true,
          true});
  expect({"let_go_on_by_somebody_else",
          {{"block-commit", "{}"},
           {"query-jobs", job("ready")},
           {"query-status", run_state("paused")},
           {"query-status", run_state("paused")},
           {"job-complete", "{}"},
           {"query-jobs", job("pending")},
           {"query-named-block-nodes", "[]"},
           {"query-status", run_state("running")},
           {"query-jobs", job("pending")},
           {"job-cancel", "{}"},
           {"query-jobs", job("concluded", "Operation canceled")},
           {"job-dismiss", "{}"},
           {"query-named-block-nodes", "[]"},
           {"query-jobs", "[]"},
           {"query-block", devices("overlay")}},
          "somebody else has let the guest go on",
          false,
          true});
  // The mark goes with the job, and only then the guest writes to the overlay again.
  expect({"finalized_without_moving",
          {{"block-commit", "{}"},
           {"query-jobs", job("ready")},
           {"query-status", run_state("running")},
           {"blockdev-add", "{}"},
           {"stop", "{}"},
           {"query-jobs", job("ready")},
           {"query-status", run_state("paused")},
           {"job-complete", "{}"},
           {"query-jobs", job("pending")},
           {"query-named-block-nodes", "[]"},
           {"query-status", run_state("paused")},
           {"job-finalize", "{}"},
           {"query-jobs", job("concluded", "Operation not permitted")},
           {"query-jobs", job("concluded", "Operation not permitted")},
           {"job-dismiss", "{}"},
           {"query-named-block-nodes", nodes(mark)},
           {"query-status", run_state("paused")},
           {"cont", "{}"},
           {"blockdev-del", "{}"},
           {"query-jobs", "[]"},
           {"query-block", devices("overlay")}},
          "the commit failed: Operation not permitted",
          false,
          true});
  // It stands until somebody asks again, and that can be us only.
  expect({"refused_once",
          {{"block-commit", "{}"},
           {"query-jobs", job("ready")},
           {"query-status", run_state("running")},
           {"blockdev-add", "{}"},
           {"stop", "{}"},
           {"query-jobs", job("ready")},
           {"query-status", run_state("paused")},
           {"job-complete", "{}"},
           {"query-jobs", job("pending")},
           {"query-named-block-nodes", "[]"},
           {"query-status", run_state("paused")},
           {"job-finalize", "{}"},
           {"query-jobs", job("concluded")},
           {"query-named-block-nodes", nodes(mark), 31s},
           {"query-named-block-nodes", nodes(mark)},
           {"query-status", run_state("paused")},
           {"cont", "{}"},
           {"blockdev-del", "{}"},
           {"query-jobs", job("concluded")},
           {"job-dismiss", "{}"},
           {"query-block", devices("base")}},
          "committed",
          true,
          true});
  expect({"late_to_stop",
          {{"block-commit", "{}"},
           {"query-jobs", job("ready")},
           {"query-status", run_state("running")},
           {"blockdev-add", "{}"},
           {"stop", "{}", 6s},
           {"query-jobs", job("ready")},
           {"job-cancel", "{}"},
           {"query-jobs", job("concluded", "Operation canceled")},
           {"job-dismiss", "{}"},
           {"query-named-block-nodes", nodes(mark)},
           {"query-status", run_state("paused")},
           {"cont", "{}"},
           {"blockdev-del", "{}"},
           {"query-jobs", "[]"},
           {"query-block", devices("overlay")}},
          "stop was not answered in 5 s",
          false,
          true});
}

TEST_F(Jobs, ACommitThatIsNeverReadyIsCancelled) {
  Answers answers{{"block-commit", "{}"}};
  for (int i = 0; i < 42; ++i)  // four a second
    answers.push_back({"query-jobs", job("running")});
  answers.insert(answers.end(), {{"query-jobs", job("running")},
                                 {"job-cancel", "{}"},
                                 {"query-jobs", job("concluded", "Operation canceled")},
                                 {"job-dismiss", "{}"}});
  expect({"never_ready", answers, "not_ready", false});
}

/// It was ready for an instant, and the guest writes faster ever since.
TEST_F(Jobs, ACommitThatDoesNotCompleteIsCancelled) {
  Answers answers{{"block-commit", "{}"}, {"query-jobs", job("ready")}, {"job-complete", "{}"}};
  for (int i = 0; i < 481; ++i)  // four a second, for two minutes
    answers.push_back({"query-jobs", job("ready")});
  answers.insert(answers.end(), {{"query-jobs", job("ready")},
                                 {"query-jobs", job("ready")},
                                 {"job-cancel", "{}"},
                                 {"query-jobs", job("concluded", "Operation canceled")},
                                 {"job-dismiss", "{}"},
                                 {"query-jobs", "[]"}});
  expect({"does_not_complete", answers, "not_ready", false});
}

/// The guard kills a session that hangs; this one waits for QEMU.
TEST_F(Jobs, ASlowQemuIsNoReasonToKillTheSession) {
  Answers answers{
      {"block-commit", "{}"}, {"query-jobs", job("ready"), 25s}, {"job-complete", "{}", 4900ms}};
  for (int i = 0; i < 20; ++i)
    answers.push_back({"query-jobs", job("waiting"), 4900ms});
  answers.insert(answers.end(), {{"query-jobs", job("pending"), 4900ms},
                                 {"query-named-block-nodes", "[]", 4900ms},
                                 {"job-finalize", "{}", 4900ms},
                                 {"query-jobs", job("concluded"), 25s},
                                 {"query-jobs", job("concluded"), 25s},
                                 {"job-dismiss", "{}", 25s},
                                 {"query-block", devices("base"), 25s}});
  expect({"slow", answers, "committed", true});
}

TEST_F(Jobs, AStepThatFailsIsUndoneUnderTheGuard) {
  expect({"late_to_pending",
          {{"block-commit", "{}"},
           {"query-jobs", job("ready")},
           {"job-complete", "{}"},
           {"query-jobs", job("waiting"), 6s},
           {"query-jobs", job("waiting"), 25s},
           {"query-jobs", job("pending"), 25s},
           {"job-cancel", "{}", 25s},
           {"query-jobs", job("concluded"), 25s},
           {"job-dismiss", "{}", 25s},
           {"query-jobs", "[]"},
           {"query-block", devices("overlay")}},
          "query-jobs was not answered in 5 s",
          false});
  expect({"late_to_be_finalized",
          {{"block-commit", "{}"},
           {"query-jobs", job("ready")},
           {"job-complete", "{}"},
           {"query-jobs", job("pending")},
           {"query-named-block-nodes", "[]"},
           {"job-finalize", "{}", 6s},
           {"query-jobs", job("concluded"), 25s},
           {"job-dismiss", "{}", 25s},
           {"query-jobs", "[]"},
           {"query-block", devices("base")}},
          "committed",
          true});
}

}  // namespace
}  // namespace nbdelta::client::backup
