// A commit counts only where the guest has moved, whatever became of the job.

#include "client/backup/jobs.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/client/backup/conversation.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;
using Names = std::vector<std::string>;

constexpr const char* kJob = "nbdelta-0123abcd-0002-0-a";

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

/// What QEMU says, and what must come of it.
struct Row {
  const char* name;
  std::vector<std::pair<std::string, std::string>> answers;  // to which command
  std::string outcome;  // "committed", "not_ready", or a part of the error
  Names hooks;
};

class Jobs : public Conversation {
 protected:
  void expect(const Row& row) {
    SCOPED_TRACE(row.name);
    Ends ends = connection("QMP at here");
    qmp::Client client(std::move(ends.first), clock_);
    Peer peer(std::move(ends.second));
    Names hooks;
    std::string outcome;
    spawn([&]() -> asio::awaitable<void> {
      const CommitHooks told{.before_complete = [&] { hooks.push_back("before"); },
                             .committed = [&] { hooks.push_back("committed"); }};
      try {
        const CommitEnd end = co_await commit_active(client, kJob, "overlay", "base", 10s, told);
        outcome = end == CommitEnd::committed ? "committed" : "not_ready";
      } catch (const Error& error) {
        outcome = error.what();
      }
    });
    spawn([&]() -> asio::awaitable<void> {
      for (const auto& [command, answer] : row.answers) {
        const std::string name = co_await peer.answer(answer);
        EXPECT_EQ(name, command);
      }
    });
    run();
    EXPECT_IN(row.outcome, outcome);
    EXPECT_EQ(hooks, row.hooks);
  }
};

TEST_F(Jobs, ACommitIsJudgedByWhereTheGuestIs) {
  const Row kRows[] = {
      {"the_usual",
       {{"block-commit", "{}"},
        {"query-jobs", job("running")},
        {"query-jobs", job("ready")},
        {"job-complete", "{}"},
        {"query-jobs", job("pending")},
        {"query-jobs", job("concluded")},
        {"query-block", devices("base")},
        {"job-dismiss", "{}"}},
       "committed",
       {"before", "committed"}},
      {"ended_by_somebody_else_when_it_was_ready",
       {{"block-commit", "{}"},
        {"query-jobs", job("concluded")},
        {"query-block", devices("overlay")}},
       "without moving the guest to base",
       {}},
      {"disk_taken_away_meanwhile",
       {{"block-commit", "{}"}, {"query-jobs", job("concluded")}, {"query-block", "[]"}},
       "without moving the guest to base",
       {}},
      {"completed_by_somebody_else",
       {{"block-commit", "{}"},
        {"query-jobs", job("concluded")},
        {"query-block", devices("base")},
        {"job-dismiss", "{}"}},
       "committed",
       {"committed"}},
      {"cancelled_after_job_complete",
       {{"block-commit", "{}"},
        {"query-jobs", job("ready")},
        {"job-complete", "{}"},
        {"query-jobs", job("concluded")},
        {"query-block", devices("overlay")}},
       "without moving the guest to base",
       {"before"}},
      {"failed",
       {{"block-commit", "{}"},
        {"query-jobs", job("concluded", "No space left on device")},
        {"job-dismiss", "{}"}},
       "the commit failed: No space left on device",
       {}},
      {"failed_in_the_end",
       {{"block-commit", "{}"},
        {"query-jobs", job("ready")},
        {"job-complete", "{}"},
        {"query-jobs", job("concluded", "Input/output error")},
        {"job-dismiss", "{}"}},
       "the commit failed: Input/output error",
       {"before"}},
      {"dismissed_by_somebody_else",
       {{"block-commit", "{}"}, {"query-jobs", "[]"}},
       "does not know the job",
       {}},
  };
  for (const Row& row : kRows)
    expect(row);
}

TEST_F(Jobs, ACommitThatIsNeverReadyIsCancelled) {
  std::vector<std::pair<std::string, std::string>> answers{{"block-commit", "{}"}};
  for (int i = 0; i < 42; ++i)  // four a second
    answers.emplace_back("query-jobs", job("running"));
  answers.insert(answers.end(), {{"job-cancel", "{}"},
                                 {"query-jobs", job("concluded", "Operation canceled")},
                                 {"job-dismiss", "{}"}});
  expect({"never_ready", answers, "not_ready", {}});
}

}  // namespace
}  // namespace nbdelta::client::backup
