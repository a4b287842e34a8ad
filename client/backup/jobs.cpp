#include "client/backup/jobs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "client/backup/breaks.hpp"
#include "client/backup/commit_guard.hpp"
#include "client/backup/obstacles.hpp"
#include "client/backup/overlay_files.hpp"
#include "qapi/block_nodes.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;

constexpr Clock::Duration kPoll = 250ms;       // events shorten it
constexpr Clock::Duration kCompletion = 120s;  // from job-complete to pending, and to the end
constexpr Clock::Duration kCancel = 30s;
constexpr Clock::Duration kAnswer = qmp::Client::kTimeout;
constexpr Clock::Duration kFlush = 10min;  // of a cache of gigabytes, on a slow storage
constexpr Clock::Duration kHurry = 5s;     // for an answer while the guest's writes may wait

/// The guest writes faster than the job copies, also after the job was told to complete.
class Outrun : public Error {
 public:
  using Error::Error;
};

asio::awaitable<std::optional<qapi::JobInfo>> query_job(qmp::Client& qmp, std::string id,
                                                        Clock::Duration timeout = kAnswer) {
  const std::vector<qapi::JobInfo> jobs = co_await qmp.call(qapi::QueryJobs{}, timeout);
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

asio::awaitable<qapi::JobInfo> must_query(qmp::Client& qmp, std::string id,
                                          Clock::Duration timeout = kAnswer) {
  const auto job = co_await query_job(qmp, id, timeout);
  if (!job)
    fail(ENOENT, "QEMU does not know the job {} any more", id);
  co_return *job;
}

/// Until the job has `status`, or is concluded.
asio::awaitable<qapi::JobInfo> wait_until(qmp::Client& qmp, std::string id, std::string_view status,
                                          Clock::Duration patience,
                                          Clock::Duration timeout = kAnswer) {
  const Clock::Time deadline = qmp.clock().now() + patience;
  while (true) {
    qapi::JobInfo job = co_await must_query(qmp, id, timeout);
    if (job.status == status || job.status == "concluded")
      co_return job;
    if (qmp.clock().now() > deadline)
      throw TimedOut(fmt::format("the job {} is still {}", id, job.status));
    co_await pause(qmp);
  }
}

asio::awaitable<qapi::JobInfo> wait_until_concluded(qmp::Client& qmp, std::string id,
                                                    Clock::Duration patience) {
  co_return co_await wait_until(qmp, std::move(id), "concluded", patience);
}

/// It has not moved the guest yet. It may come to its end meanwhile, cancelled by somebody before.
asio::awaitable<void> cancel(qmp::Client& qmp, std::string id) {
  std::exception_ptr refusal;
  try {
    const qapi::JobCancel job_cancel{.id = id};
    co_await qmp.call(job_cancel);
  } catch (const qapi::CommandError&) {
    refusal = std::current_exception();
  }
  if (refusal) {
    const std::optional<qapi::JobInfo> job = co_await query_job(qmp, id);
    if (!job)
      co_return;
    if (job->status != "concluded")
      std::rethrow_exception(refusal);
  }
  co_await wait_until_concluded(qmp, id, kCancel);
  const qapi::JobDismiss job_dismiss{.id = id};
  co_await qmp.call(job_dismiss);
}

asio::awaitable<void> dismiss_failed(qmp::Client& qmp, qapi::JobInfo job) {
  const qapi::JobDismiss job_dismiss{.id = job.id};
  co_await qmp.call(job_dismiss);
  fail(EIO, "the commit failed: {}", *job.error);
}

/// Returns what was done. What has not moved the guest yet is cancelled: its writes may wait in
/// QEMU by now, see must_stop_guest().
asio::awaitable<std::string> end_job(qmp::Client& qmp, Files& files, qapi::JobInfo job,
                                     std::string overlay) {
  if (job.status == "waiting" || job.status == "aborting")
    job = co_await wait_until(qmp, job.id, "pending", kCompletion);
  if (job.status == "pending" && broken("finalized-without-mark")) {
    const qapi::JobFinalize job_finalize{.id = job.id};
    co_await qmp.call(job_finalize);
    job = co_await wait_until_concluded(qmp, job.id, kCompletion);
  }
  const bool marked = !overlay.empty() && is_committed(files, overlay);
  if (job.status != "concluded") {
    if (marked)
      unmark_committed(files, overlay);  // before the guest writes there again
    co_await cancel(qmp, job.id);
    co_return fmt::format("cancelled the job {} ({})", job.id, job.status);
  }
  if (job.error && marked && !broken("mark-kept-by-failed-commit"))
    unmark_committed(files, overlay);
  const qapi::JobDismiss job_dismiss{.id = job.id};
  co_await qmp.call(job_dismiss);
  co_return fmt::format("dismissed the job {} (it had ended{})", job.id,
                        job.error ? ": " + *job.error : std::string());
}

asio::awaitable<void> end_and_resume(qmp::Client& qmp, Files& files, qapi::JobInfo job,
                                     CommitWatch watch, std::vector<std::string>& done) {
  done.push_back(co_await end_job(qmp, files, std::move(job), watch.overlay_local));
  std::string resumed = co_await resume_guest(qmp, is_of(watch.job));
  if (!resumed.empty())
    done.push_back(std::move(resumed));
}

/// A guest that stands already stays as it is.
asio::awaitable<void> stop_guest(qmp::Client& qmp, std::string job) {
  const qapi::RunState state = co_await qmp.call(qapi::QueryStatus{}, kHurry);
  if (!state.running)
    co_return;
  qapi::BlockdevAdd mark;
  mark.driver = "null-co";
  mark.node_name = stop_node_name(*session_of(job));
  co_await qmp.call(std::move(mark), kHurry);
  co_await qmp.call(qapi::Stop{}, kHurry);
  co_await wait_until(qmp, job, "ready", kHurry, kHurry);  // it has paused meanwhile
}

/// Throws Error where the guest runs: somebody else may have let it go on since it was stopped, or
/// since it was seen to stand.
asio::awaitable<void> must_stand(qmp::Client& qmp) {
  const qapi::RunState state = co_await qmp.call(qapi::QueryStatus{}, kHurry);
  if (state.running)
    fail(ECANCELED, "somebody else has let the guest go on, which stands while a commit moves it");
}

/// Told to complete, the job copies on until nothing is left to copy for an instant. A guest that
/// stands cannot be why there is none.
asio::awaitable<qapi::JobInfo> wait_until_pending(qmp::Client& qmp, ActiveCommit commit) {
  const Clock::Time deadline = qmp.clock().now() + kCompletion;
  while (true) {
    qapi::JobInfo job = co_await must_query(qmp, commit.job, kHurry);
    if (job.status == "pending" || job.status == "concluded")
      co_return job;
    if (qmp.clock().now() > deadline) {
      if (job.status == "ready" && !commit.stops_guest)
        throw Outrun(ETIMEDOUT, "the guest writes faster than the commit copies");
      throw TimedOut(fmt::format("the job {} is still {}", commit.job, job.status));
    }
    co_await pause(qmp);
  }
}

/// From READY on, until the job has moved the guest. Throws Error where it has not; what is left is
/// to be ended then.
asio::awaitable<void> move_guest(qmp::Client& qmp, Files& files, ActiveCommit commit) {
  if (commit.stops_guest)
    co_await stop_guest(qmp, commit.job);
  if (broken("mark-before-pending"))
    mark_committed(files, commit.overlay_local);
  if (commit.stops_guest)
    co_await must_stand(qmp);
  const qapi::JobComplete job_complete{.id = commit.job};
  co_await qmp.call(job_complete, kHurry);
  qapi::JobInfo info = co_await wait_until_pending(qmp, commit);
  if (info.status == "pending") {
    const std::vector<std::string> only_node{commit.top};
    co_await check_for_snapshots(qmp, only_node, kHurry);
    if (!broken("mark-after-finalize"))
      mark_committed(files, commit.overlay_local);  // the guest's writes wait
    if (commit.stops_guest)
      co_await must_stand(qmp);
    const qapi::JobFinalize job_finalize{.id = commit.job};
    co_await qmp.call(job_finalize, kHurry);
    info = co_await wait_until(qmp, commit.job, "concluded", kCompletion,
                               commit.stops_guest ? kHurry : kAnswer);
  }
  if (info.error)
    fail(EIO, "the commit failed: {}", *info.error);
}

/// Ends a job that has failed, and only then lets a guest go on that stands: it writes to the
/// overlay again.
asio::awaitable<void> let_guest_go_on(qmp::Client& qmp, Files& files, ActiveCommit commit,
                                      bool failed) {
  if (failed)
    co_await end_active(qmp, files, commit.job, commit.overlay_local);
  if (commit.stops_guest && !broken("guest-left-standing"))
    co_await resume_guest(qmp, is_of(commit.job));
}

/// The same as move_guest(), and the guest goes on; where it fails, with `failure`, the job has
/// been ended.
asio::awaitable<void> move_guest_or_end(qmp::Client& qmp, Files& files, ActiveCommit commit,
                                        std::exception_ptr& failure) {
  try {
    co_await move_guest(qmp, files, commit);
  } catch (const qmp::ChannelLost&) {
    throw;
  } catch (const Error&) {
    failure = std::current_exception();
  }
  const bool failed = failure != nullptr;
  bool refused = false;
  try {
    co_await let_guest_go_on(qmp, files, commit, failed);
  } catch (const qmp::ChannelLost&) {
    throw;
  } catch (const Error&) {
    refused = true;
  }
  if (refused)  // nobody else can, while QEMU serves us
    co_await let_guest_go_on(qmp, files, commit, failed);
}

/// From READY to the end, with a guard over the step in which the guest's writes wait.
asio::awaitable<void> complete(qmp::Client& qmp, Environment& environment, ActiveCommit commit) {
  CommitGuard guard(environment);
  // What may take its time, while nobody waits.
  if (!broken("next-start-on-committed-overlay"))
    remove_current(environment.files(), commit.overlay_local);
  if (commit.stops_guest)
    environment.files().sync(commit.overlay_local);
  const CommitWatch watch{
      .qmp = commit.qmp_address, .job = commit.job, .overlay_local = commit.overlay_local};
  if (!broken("commit-unguarded"))
    co_await guard.watch(watch);
  std::exception_ptr failure;
  asio::awaitable<void> step = move_guest_or_end(qmp, environment.files(), commit, failure);
  co_await guard.during(std::move(step));
  co_await guard.release();
  if (failure)
    std::rethrow_exception(failure);
}

/// Returns whether it got ready.
asio::awaitable<bool> run_commit(qmp::Client& qmp, Environment& environment, ActiveCommit commit) {
  const Clock::Time deadline = qmp.clock().now() + commit.ready_deadline;
  qapi::JobInfo info;
  while (true) {
    info = co_await must_query(qmp, commit.job);
    if (info.status == "ready" || info.status == "pending" || info.status == "concluded")
      break;
    if (qmp.clock().now() > deadline)
      co_return false;
    co_await pause(qmp);
  }
  if (info.error)
    fail(EIO, "the commit failed: {}", *info.error);
  if (info.status == "pending")  // the guest's writes wait
    fail(ECANCELED, "somebody else has ended the job {}", commit.job);
  if (info.status == "ready")
    co_await complete(qmp, environment, commit);
  co_return true;
}

/// QMP's blockdev-reopen takes no node whose name QEMU has made up ("Cannot change the option
/// 'node-name'").
asio::awaitable<void> reopen_by_human_monitor(qmp::Client& qmp, std::string node,
                                              image::Access access) {
  const qapi::HumanMonitorCommand reopen{
      .command_line = fmt::format("qemu-io \"{}\" \"reopen {}\"", node,
                                  access == image::Access::read ? "-r" : "-w")};
  const std::string said = co_await qmp.call(reopen);
  if (!said.empty())
    fail(EIO, "{}: cannot be opened again: {}", node, said);
}

/// Somebody else may have ended the commit where it was, or have taken the disk away.
asio::awaitable<bool> runs_on(qmp::Client& qmp, std::string node) {
  const auto devices = co_await qmp.call(qapi::QueryBlock{});
  co_return std::any_of(devices.begin(), devices.end(), [&](const qapi::DeviceInfo& device) {
    return device.inserted && device.inserted->node_name == node;
  });
}

}  // namespace

bool must_stop_guest(std::uint64_t qemu_major, image::Format base) {
  return qemu_major < 10 && base == image::Format::raw && !broken("guest-not-stopped");
}

std::function<bool(const SessionId&)> is_of(const std::string& job) {
  return [id = session_of(job)](const SessionId& each) { return each == id; };
}

asio::awaitable<std::string> end_active(qmp::Client& qmp, Files& files, std::string job,
                                        std::string overlay_local) {
  const std::optional<qapi::JobInfo> info = co_await query_job(qmp, job);
  if (!info)
    co_return std::string();
  co_return co_await end_job(qmp, files, *info, overlay_local);
}

asio::awaitable<std::string> resume_guest(qmp::Client& qmp,
                                          std::function<bool(const SessionId&)> is_ours) {
  std::string done;
  const qapi::QueryNamedBlockNodes query{.flat = true};
  const auto nodes = co_await qmp.call(query);
  for (const qapi::NodeInfo& node : nodes) {
    const std::string name = node.node_name.value_or("");
    const auto session = session_of(name);
    if (!session || name != stop_node_name(*session) || !is_ours(*session))
      continue;
    const qapi::RunState state = co_await qmp.call(qapi::QueryStatus{});
    if (state.status == "paused" || state.status == "prelaunch") {  // the latter after a reset
      co_await qmp.call(qapi::Cont{});
      done = "let the guest go on, which a commit had stopped";
    }
    const qapi::BlockdevDel blockdev_del{.node_name = name};
    co_await qmp.call(blockdev_del);
  }
  co_return done;
}

asio::awaitable<CommitEnd> commit_active(qmp::Client& qmp, Environment& environment,
                                         ActiveCommit commit) {
  Files& files = environment.files();
  const qapi::BlockCommit block_commit{.job_id = commit.job,
                                       .device = commit.top,
                                       .base_node = commit.base,
                                       .top_node = std::nullopt,
                                       .backing_file = std::nullopt,
                                       .speed = std::nullopt,
                                       .auto_finalize = false,
                                       .auto_dismiss = false};
  co_await qmp.call(block_commit);
  bool ready = true;
  std::exception_ptr failure;
  try {
    ready = co_await run_commit(qmp, environment, commit);
  } catch (const qmp::ChannelLost&) {
    throw;
  } catch (const Outrun&) {
    ready = false;
  } catch (const Error&) {
    failure = std::current_exception();
  }
  bool ended = false;
  try {
    co_await end_active(qmp, files, commit.job, commit.overlay_local);
    ended = true;
  } catch (const qapi::CommandError&) {  // it has ended by itself meanwhile
  }
  if (!ended)
    co_await end_active(qmp, files, commit.job, commit.overlay_local);
  if (!ready)
    co_return CommitEnd::not_ready;
  const bool moved = co_await runs_on(qmp, commit.base);
  if (!moved) {
    if (failure)
      std::rethrow_exception(failure);
    fail(EIO, "the commit has ended without moving the guest to {}", commit.base);
  }
  if (!is_committed(files, commit.overlay_local))  // somebody else has completed it
    mark_committed(files, commit.overlay_local);
  co_return CommitEnd::committed;
}

asio::awaitable<bool> reopen_base(qmp::Client& qmp, GuestDisk disk, image::Access access) {
  const qapi::QueryNamedBlockNodes query{.flat = true};
  const auto nodes = co_await qmp.call(query);
  const bool writable = std::any_of(nodes.begin(), nodes.end(), [&](const qapi::NodeInfo& node) {
    return node.node_name == disk.base_node && !node.read_only;
  });
  if (writable == (access == image::Access::write))
    co_return !writable;
  if (is_automatic(disk.base_node)) {
    co_await reopen_by_human_monitor(qmp, disk.base_node, access);
    co_return !writable;
  }
  qapi::json::object options{{"driver", disk.base_format == image::Format::raw ? "raw" : "qcow2"},
                             {"node-name", disk.base_node},
                             {"file", disk.base_file_node},
                             {"read-only", access == image::Access::read},
                             {"discard", "unmap"},
                             {"detect-zeroes", disk.detect_zeroes}};
  if (!disk.backing_node.empty())
    options["backing"] = disk.backing_node;
  if (disk.direct)
    options["cache"] = {{"direct", true}};
  qapi::BlockdevReopen reopen;
  reopen.options.push_back(std::move(options));
  bool refused = false;
  try {
    co_await qmp.call(reopen);
  } catch (const qapi::CommandError&) {  // an external data file would have to be named, too
    refused = true;
  }
  if (refused)
    co_await reopen_by_human_monitor(qmp, disk.base_node, access);
  co_return !writable;
}

/// First from here: where QEMU's host is this one, nothing is left for QEMU to do then, which holds
/// the guest and QMP up meanwhile. There is no QMP command for it, and what the human monitor says
/// is of no use.
asio::awaitable<void> flush(qmp::Client& qmp, Files& files, std::string node, std::string local) {
  files.sync(local);
  try {
    const qapi::HumanMonitorCommand flush{.command_line =
                                              fmt::format("qemu-io \"{}\" flush", node)};
    co_await qmp.call(flush, kFlush);
  } catch (const qapi::CommandError&) {  // it has no human monitor
  }
}

asio::awaitable<std::string> remove_node(qmp::Client& qmp, std::string node) {
  try {
    const qapi::BlockdevDel blockdev_del{.node_name = node};
    co_await qmp.call(blockdev_del);
  } catch (const qapi::CommandError& error) {
    const std::string& why = error.description();
    const bool gone = why.find("Failed to find node") != std::string::npos ||
                      why.find("Cannot find device") != std::string::npos;
    co_return gone ? std::string() : why;  // it went with the commit
  }
  co_return std::string();
}

/// QEMU (7.2) writes the new backing file into the header before it flushes the base's tables: had
/// it died between, the base would lack what was committed. So the header keeps the old name until
/// the job has ended, and the base was flushed with that. A raw base has no tables, and its format
/// would be wrong beside the old name; its data is made durable before the header is written.
asio::awaitable<void> commit_below(qmp::Client& qmp, Files& files, LowerCommit commit) {
  const bool raw = commit.base_format == image::Format::raw;
  const qapi::BlockCommit block_commit{.job_id = commit.job,
                                       .device = commit.active,
                                       .base_node = commit.base,
                                       .top_node = commit.top,
                                       .backing_file = raw ? commit.base_path : commit.top_path,
                                       .speed = std::nullopt,
                                       .auto_finalize = false,
                                       .auto_dismiss = false};
  co_await qmp.call(block_commit);
  // Its work is of a fixed size, but nobody knows how fast the storage is.
  qapi::JobInfo info = co_await wait_until(qmp, commit.job, "pending", 24h);
  if (info.status == "pending") {
    co_await flush(qmp, files, commit.base, commit.base_local);  // before the header names it
    const qapi::JobFinalize job_finalize{.id = commit.job};
    co_await qmp.call(job_finalize);
    info = co_await wait_until_concluded(qmp, commit.job, kCompletion);
  }
  if (info.error)
    co_await dismiss_failed(qmp, info);
  const qapi::JobDismiss job_dismiss{.id = commit.job};
  co_await qmp.call(job_dismiss);
  if (!raw) {
    const qapi::ChangeBackingFile change_backing_file{
        .device = commit.active, .image_node = commit.above, .backing_file = commit.base_path};
    co_await qmp.call(change_backing_file);
  }
  co_await flush(qmp, files, commit.above, commit.above_local);  // the committed file is to go
}

asio::awaitable<std::vector<std::string>> end_jobs(qmp::Client& qmp, Environment& environment,
                                                   std::string qmp_address,
                                                   std::function<bool(const SessionId&)> is_ours,
                                                   std::map<std::string, std::string> tops) {
  std::vector<std::string> done;
  const std::vector<qapi::JobInfo> jobs = co_await qmp.call(qapi::QueryJobs{});
  for (const qapi::JobInfo& job : jobs) {
    const auto session = session_of(job.id);
    if (!session || !is_ours(*session))
      continue;
    const auto top = tops.find(job.id);
    const CommitWatch watch{.qmp = qmp_address,
                            .job = job.id,
                            .overlay_local = top == tops.end() ? std::string() : top->second};
    asio::awaitable<void> step = end_and_resume(qmp, environment.files(), job, watch, done);
    if (job.status != "waiting" && job.status != "pending") {
      co_await std::move(step);
      continue;
    }
    CommitGuard guard(environment);
    co_await guard.watch(watch);
    co_await guard.during(std::move(step));
    co_await guard.release();
  }
  const std::string resumed = co_await resume_guest(qmp, is_ours);
  if (!resumed.empty())
    done.push_back(resumed);
  co_return done;
}

}  // namespace nbdelta::client::backup
