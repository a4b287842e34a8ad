#include "client/backup/jobs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "qapi/block_nodes.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;

constexpr Clock::Duration kPoll = 250ms;       // events shorten it
constexpr Clock::Duration kCompletion = 120s;  // from job-complete to the end
constexpr Clock::Duration kCancel = 30s;

asio::awaitable<std::optional<qapi::JobInfo>> query_job(qmp::Client& qmp, std::string id) {
  const std::vector<qapi::JobInfo> jobs = co_await qmp.call(qapi::QueryJobs{});
  for (const qapi::JobInfo& job : jobs)
    if (job.id == id)
      co_return job;
  co_return std::nullopt;
}

/// Until something has happened in QEMU, or a while has passed.
asio::awaitable<void> pause(qmp::Client& qmp) {
  try {
    co_await before(qmp.clock(), qmp.clock().now() + kPoll, qmp.next_event(), "");
  } catch (const TimedOut&) {
  }
}

asio::awaitable<qapi::JobInfo> must_query(qmp::Client& qmp, std::string id) {
  const auto job = co_await query_job(qmp, id);
  if (!job)
    fail(ENOENT, "QEMU does not know the job {} any more", id);
  co_return *job;
}

asio::awaitable<qapi::JobInfo> wait_until_concluded(qmp::Client& qmp, std::string id,
                                                    Clock::Duration patience) {
  const Clock::Time deadline = qmp.clock().now() + patience;
  while (true) {
    qapi::JobInfo job = co_await must_query(qmp, id);
    if (job.status == "concluded")
      co_return job;
    if (qmp.clock().now() > deadline)
      throw TimedOut(fmt::format("the job {} is still {}", id, job.status));
    co_await pause(qmp);
  }
}

/// It has not moved the guest yet.
asio::awaitable<void> cancel(qmp::Client& qmp, std::string id) {
  const qapi::JobCancel job_cancel{.id = id};
  co_await qmp.call(job_cancel);
  co_await wait_until_concluded(qmp, id, kCancel);
  const qapi::JobDismiss job_dismiss{.id = id};
  co_await qmp.call(job_dismiss);
}

asio::awaitable<void> dismiss_failed(qmp::Client& qmp, qapi::JobInfo job) {
  const qapi::JobDismiss job_dismiss{.id = job.id};
  co_await qmp.call(job_dismiss);
  fail(EIO, "the commit failed: {}", *job.error);
}

}  // namespace

asio::awaitable<CommitEnd> commit_active(qmp::Client& qmp, std::string job, std::string top,
                                         std::string base, Clock::Duration ready_deadline,
                                         CommitHooks hooks) {
  const Clock::Time deadline = qmp.clock().now() + ready_deadline;
  const qapi::BlockCommit block_commit{.job_id = job,
                                       .device = top,
                                       .base_node = base,
                                       .top_node = std::nullopt,
                                       .backing_file = std::nullopt,
                                       .speed = std::nullopt,
                                       .auto_finalize = std::nullopt,
                                       .auto_dismiss = false};
  co_await qmp.call(block_commit);
  qapi::JobInfo info;
  while (true) {
    info = co_await must_query(qmp, job);
    if (info.status == "ready" || info.status == "concluded")
      break;
    if (qmp.clock().now() > deadline) {
      co_await cancel(qmp, job);
      co_return CommitEnd::not_ready;
    }
    co_await pause(qmp);
  }
  if (info.status == "ready") {
    hooks.before_complete();
    const qapi::JobComplete job_complete{.id = job};
    co_await qmp.call(job_complete);
    info = co_await wait_until_concluded(qmp, job, kCompletion);
  }
  if (info.error)
    co_await dismiss_failed(qmp, info);
  // Somebody else may have ended it where it was.
  const auto devices = co_await qmp.call(qapi::QueryBlock{});
  for (const qapi::DeviceInfo& device : devices)
    if (device.inserted && device.inserted->node_name == top)
      fail(EIO, "the commit has ended without moving the guest to {}", base);
  hooks.committed();
  const qapi::JobDismiss job_dismiss{.id = job};
  co_await qmp.call(job_dismiss);
  co_return CommitEnd::committed;
}

asio::awaitable<void> commit_below(qmp::Client& qmp, std::string job, std::string active,
                                   std::string top, std::string base, std::string base_path) {
  const qapi::BlockCommit block_commit{.job_id = job,
                                       .device = active,
                                       .base_node = base,
                                       .top_node = top,
                                       .backing_file = base_path,
                                       .speed = std::nullopt,
                                       .auto_finalize = std::nullopt,
                                       .auto_dismiss = false};
  co_await qmp.call(block_commit);
  // Its work is of a fixed size, but nobody knows how fast the storage is.
  const qapi::JobInfo info = co_await wait_until_concluded(qmp, job, 24h);
  if (info.error)
    co_await dismiss_failed(qmp, info);
  const qapi::JobDismiss job_dismiss{.id = job};
  co_await qmp.call(job_dismiss);
}

asio::awaitable<std::vector<std::string>> end_jobs(qmp::Client& qmp,
                                                   std::function<bool(const SessionId&)> is_ours) {
  std::vector<std::string> done;
  const std::vector<qapi::JobInfo> jobs = co_await qmp.call(qapi::QueryJobs{});
  for (const qapi::JobInfo& job : jobs) {
    const auto session = session_of(job.id);
    if (!session || !is_ours(*session))
      continue;
    if (job.status == "concluded") {
      const qapi::JobDismiss job_dismiss{.id = job.id};
      co_await qmp.call(job_dismiss);
      done.push_back(fmt::format("dismissed the job {} (it had ended{})", job.id,
                                 job.error ? ": " + *job.error : std::string()));
    } else if (job.status == "waiting" || job.status == "pending" || job.status == "aborting") {
      co_await wait_until_concluded(qmp, job.id, kCompletion);
      const qapi::JobDismiss job_dismiss{.id = job.id};
      co_await qmp.call(job_dismiss);
      done.push_back(fmt::format("waited for the job {} to end", job.id));
    } else {
      co_await cancel(qmp, job.id);
      done.push_back(fmt::format("cancelled the job {} ({})", job.id, job.status));
    }
  }
  co_return done;
}

}  // namespace nbdelta::client::backup
