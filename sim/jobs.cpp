#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "sim/fake_qemu.hpp"
#include "sim/unawaited.hpp"

// Block jobs (QEMU qapi/job.json): block-commit, of what the guest writes to and of what is below.
namespace nbdelta::sim {

namespace json = qapi::json;
using qapi::Nothing;

namespace {

constexpr const char* kCancelled = "Operation canceled";

}  // namespace

void FakeQemu::add_job_commands() {
  using namespace qapi;
  commands_.add<BlockCommit>([this](const BlockCommit& command) { return block_commit(command); });
  commands_.add<QueryJobs>([this](const QueryJobs&) {
    std::vector<JobInfo> infos;
    for (auto it = jobs_.rbegin(); it != jobs_.rend(); ++it) {  // the newest first
      const Job& job = *it;
      const json::object progress = progress_of(job);
      JobInfo info;
      info.id = job.id;
      info.type = "commit";
      info.status = job.status;
      info.current_progress = progress.at("offset").to_number<std::uint64_t>();
      info.total_progress = progress.at("len").to_number<std::uint64_t>();
      if (!job.error.empty())
        info.error = job.error;
      infos.push_back(std::move(info));
    }
    return infos;
  });
  commands_.add<JobComplete>([this](const JobComplete& command) {
    Job& job = job_in(command.id, "complete", {"ready"});
    job.complete = true;
    start_copying(job);
    return Nothing{};
  });
  commands_.add<JobFinalize>([this](const JobFinalize& command) {
    Job& job = job_in(command.id, "finalize", {"pending"});
    conclude(job, hooks_.job_error(job.id).value_or(""));
    return Nothing{};
  });
  commands_.add<JobDismiss>([this](const JobDismiss& command) {
    Job& job = job_in(command.id, "dismiss", {"concluded"});
    set_status(job, "null");
    jobs_.remove_if([&](const Job& each) { return &each == &job; });
    return Nothing{};
  });
  commands_.add<JobCancel>([this](const JobCancel& command) { return job_cancel(command); });
}

/// The job, if it can be told that now.
Job& FakeQemu::job_in(const std::string& id, std::string_view verb,
                      std::initializer_list<std::string_view> states) {
  for (Job& job : jobs_) {
    if (job.id != id)
      continue;
    if (std::find(states.begin(), states.end(), job.status) == states.end())
      refuse("Job '{}' in state '{}' cannot accept command verb '{}'", id, job.status, verb);
    return job;
  }
  refuse("Job not found");
}

void FakeQemu::set_status(Job& job, const std::string& status) {
  job.status = status;
  emit(std::string(qapi::JobStatusChange::kName), {{"status", status}, {"id", job.id}});
}

/// What the events of a block job tell.
json::object FakeQemu::progress_of(const Job& job) const {
  const std::uint64_t length = job.intermediate ? job.length : job.done + job.dirty.size();
  return {{"device", job.id},
          {"type", "commit"},
          {"len", length * job.granule_size},
          {"offset", job.done * job.granule_size},
          {"speed", job.speed}};
}

/// QEMU has a class of its own for one that is not there.
Node& FakeQemu::commit_device(const std::string& name) {
  try {
    graph_.lookup(name);
  } catch (const BlockError&) {
    throw BlockError(fmt::format("Device '{}' not found", name), "DeviceNotFound");
  }
  Node& active = root_node(name);
  graph_.refuse_if_blocked(active);
  return active;
}

Node& FakeQemu::node_in_chain(const std::string& name, Node& top) {
  Node* node = graph_.find(name);
  if (node == nullptr)
    refuse("Cannot find device='' nor node-name='{}'", name);
  if (node != &top && !graph_.is_below(*node, top))
    refuse("'{}' is not in this backing file chain", name);
  return *node;
}

Nothing FakeQemu::block_commit(const qapi::BlockCommit& command) {
  Node& active = commit_device(command.device);
  Node& top = command.top_node ? node_in_chain(*command.top_node, active) : active;
  Node* base = &top;
  if (command.base_node)
    base = &node_in_chain(*command.base_node, top);
  else
    while (base->backing != nullptr)
      base = base->backing;
  format_node(*base);
  refuse_if_in_job(top, *base);
  if (base == &top)
    refuse("cannot commit an image into itself");
  const bool intermediate = &top != &active;
  if (!intermediate && command.backing_file)
    refuse("'backing-file' specified, but 'top' is the active layer");
  const Device* device = graph_.device_of(active);
  const std::string id = command.job_id.value_or(device == nullptr ? "" : device->name);
  const bool base_was_read_only = base->read_only;
  if (!intermediate)
    graph_.set_read_only(*base, false);
  try {
    check_job_id(id);
  } catch (const BlockError&) {
    if (base_was_read_only)
      graph_.try_read_only(*base);
    throw;
  }

  Job& job = add_job(command, id);
  job.main = job.active = &active;
  job.top = &top;
  job.base = base;
  job.intermediate = intermediate;
  job.base_was_read_only = base_was_read_only;
  job.length = top.image->granules();
  job.granule_size = top.image->granule_size();
  for (std::uint64_t granule = 0; granule < job.length; ++granule)
    for (const Node* node = &top; node != base; node = node->backing)
      if (node->image->held(granule) != Held::nothing) {
        job.dirty.insert(granule);
        break;
      }
  set_status(job, "created");
  try {
    if (command.speed && *command.speed < 0)
      refuse("Parameter 'speed' expects a non-negative value");
    take_nodes(job);
  } catch (const BlockError&) {
    give_up(job);
    throw;
  }
  set_status(job, "running");
  start_copying(job);
  return {};
}

/// Another one's, beside this chain.
void FakeQemu::refuse_if_in_job(const Node& top, const Node& base) const {
  for (const Node* node = &top; node != base.backing; node = node->backing)
    if (!node->job.empty())
      graph_.refuse_if_blocked(*node);
}

void FakeQemu::check_job_id(const std::string& id) const {
  if (!is_well_formed(id))
    refuse("Invalid job ID '{}'", id);
  for (const Job& job : jobs_)
    if (job.id == id)
      refuse("Job ID '{}' already in use", id);
}

Job& FakeQemu::add_job(const qapi::BlockCommit& command, const std::string& id) {
  Job& job = jobs_.emplace_back();
  job.id = id;
  job.backing_file = command.backing_file;
  job.auto_finalize = command.auto_finalize.value_or(true);
  job.auto_dismiss = command.auto_dismiss.value_or(true);
  job.serial = ++last_job_;
  job.speed = static_cast<std::uint64_t>(std::max<std::int64_t>(command.speed.value_or(0), 0));
  return job;
}

/// Nobody may rely on what the nodes above the base read, or change the base. It must be writable.
void FakeQemu::take_nodes(Job& job) {
  if (job.intermediate) {
    graph_.set_read_only(*job.base, false);
    graph_.refuse_if_read_by_others(*job.top);
  }
  block_nodes(job);
  check_permissions(*job.base);
  check_permissions(*job.top);
  graph_.grow_to(*job.base, *job.top);
}

/// It has not begun.
void FakeQemu::give_up(Job& job) {
  release(job);
  set_status(job, "null");
  if (job.base_was_read_only)
    graph_.try_read_only(*job.base);
  jobs_.pop_back();
}

void FakeQemu::block_nodes(Job& job) {
  for (Node* node = job.active; node != nullptr; node = node->backing) {
    node->job = job.id;
    if (node == job.base)
      break;
  }
  job.base->has_job_blk = true;
  job.top->has_job_blk = job.intermediate;
  job.top->filtered = !job.intermediate;
  for (auto& [id, each] : exports_)
    each.above_job |= each.node == job.top;
  job.in_force = true;
}

/// Whether it lies above the base and is not above what is committed.
bool FakeQemu::is_between(const Job& job, const Node& node) {
  for (const Node* each = job.top; each != job.base; each = each->backing)
    if (each == &node)
      return true;
  return false;
}

/// One that copies for the guest's overlay ends a little later.
Nothing FakeQemu::job_cancel(const qapi::JobCancel& command) {
  Job& job = job_in(command.id, "cancel", {"running", "ready", "pending"});
  job.cancelled = true;
  if (job.intermediate || job.status == "pending")
    conclude(job, kCancelled);
  else
    asio::co_spawn(executor_, cancel_job(job.serial), kUnawaited);
  return {};
}

asio::awaitable<void> FakeQemu::cancel_job(std::uint64_t serial) {
  co_await clock_->wait(timing_.job_granule);
  if (Job* job = working_job(serial))
    conclude(*job, kCancelled);
}

void FakeQemu::start_copying(Job& job) {
  if (std::exchange(job.copying, true))
    return;
  asio::co_spawn(executor_, run_job(job.serial), kUnawaited);
}

Job* FakeQemu::working_job(std::uint64_t serial) {
  for (Job& job : jobs_)
    if (job.serial == serial && (job.status == "running" || job.status == "ready"))
      return &job;
  return nullptr;
}

/// Copies until nothing is dirty, and goes on to what comes next. The job may be gone after every
/// wait.
asio::awaitable<void> FakeQemu::run_job(std::uint64_t serial) {
  Clock::Duration pause = timing_.job_granule;
  while (true) {
    co_await clock_->wait(pause);
    Job* job = working_job(serial);
    if (job == nullptr || job->cancelled)
      co_return;
    if (job->dirty.empty()) {
      job->copying = false;
      try {
        converge(*job);
      } catch (const BlockError& failure) {
        conclude(*job, failure.what());
      }
      co_return;
    }
    const auto refusal = hooks_.job_error(job->id);
    std::string error = refusal.value_or("");
    const std::uint64_t granule = *job->dirty.begin();
    if (job->intermediate)
      job->done = granule;  // what it skips is done too
    try {
      if (error.empty())
        graph_.copy(*job->top, *job->base, granule);
    } catch (const Error& failure) {
      error = failure.what();
    }
    if (!error.empty()) {
      emit("BLOCK_JOB_ERROR", {{"device", job->id}, {"operation", "write"}, {"action", "report"}});
      conclude(*job, error);
      co_return;
    }
    job->dirty.erase(granule);
    ++job->done;
    const std::uint64_t speed = job->speed;
    const std::uint64_t size = job->granule_size;
    hooks_.step("job copied");
    pause = speed == 0 ? timing_.job_granule : std::chrono::microseconds(size * 1000000 / speed);
  }
}

void FakeQemu::converge(Job& job) {
  if (job.intermediate) {
    job.done = job.length;
    make_pending(job);
  } else if (job.status == "running") {
    graph_.flush(*job.base);
    set_status(job, "ready");
    emit("BLOCK_JOB_READY", progress_of(job));
    hooks_.step("job ready");
  } else if (job.complete) {
    graph_.flush(*job.base);
    make_pending(job);
  }
}

/// From here on an active commit holds the guest's writes back (drained()), and the base has all
/// that was written.
void FakeQemu::make_pending(Job& job) {
  set_status(job, "waiting");
  set_status(job, "pending");
  job.drains = !job.intermediate;
  hooks_.step("job pending");
  if (job.auto_finalize)
    conclude(job, "");
  else
    emit("BLOCK_JOB_PENDING", {{"type", "commit"}, {"id", job.id}});
}

/// `error`: empty where it went well.
void FakeQemu::conclude(Job& job, std::string error) {
  release(job);
  if (error.empty()) {
    try {
      job.intermediate ? finish_intermediate(job) : finish_active(job);
    } catch (const BlockError& failure) {
      error = failure.what();
    }
  }
  job.error = error;
  if (!error.empty()) {
    set_status(job, "aborting");
    const bool restores = job.intermediate || version_.major >= 10;  // 7.2: not an active commit
    if (restores && job.base_was_read_only)
      graph_.try_read_only(*job.base);
    graph_.collect();  // its disk may have been unplugged
  }
  job.drains = false;
  write_held_back();
  json::object data = progress_of(job);
  if (!error.empty() && !job.cancelled)
    data["error"] = error;
  emit(job.cancelled ? "BLOCK_JOB_CANCELLED" : std::string(qapi::BlockJobCompleted::kName),
       std::move(data));
  set_status(job, "concluded");
  hooks_.step("job concluded");
  if (!job.auto_dismiss)
    return;
  set_status(job, "null");
  jobs_.remove_if([&](const Job& each) { return &each == &job; });
}

void FakeQemu::finish_active(Job& job) {
  const bool one_waits = std::any_of(held_.begin(), held_.end(), [&](const HeldWrite& each) {
    return each.sent && each.device->root == job.active;
  });
  if (version_.major < 10 && job.base->driver == "raw" && one_waits)
    hooks_.aborted("bdrv_co_write_req_prepare: Assertion `child->perm & BLK_PERM_WRITE' failed.");
  graph_.replace(*job.top, *job.base, job.top);
  hooks_.step("guest moved to the base");
  graph_.collect();
}

/// In QEMU's order: the header is written before the base is flushed.
void FakeQemu::finish_intermediate(Job& job) {
  const std::string backing = job.backing_file.value_or(job.base->path);
  for (Node* above : graph_.users_of(*job.top)) {
    if (above->backing != job.top)
      continue;
    graph_.set_backing(*above, {backing, job.base->driver});
    hooks_.step("header names another backing file");
    above->backing = job.base;
  }
  graph_.replace(*job.top, *job.base, nullptr);  // exports
  graph_.try_read_only(*job.base);
  hooks_.step("base is read-only again");
  graph_.collect();
}

void FakeQemu::release(Job& job) {
  for (const auto& node : graph_.nodes()) {
    if (node->job != job.id)
      continue;
    node->job.clear();
    node->filtered = node->has_job_blk = false;
  }
  for (auto& [id, each] : exports_)
    if (each.node == job.top)
      each.above_job = false;
  job.in_force = false;
  if (!job.intermediate)
    job.main = nullptr;
}

}  // namespace nbdelta::sim
