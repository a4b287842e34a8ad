#include <fmt/format.h>

#include <utility>

#include "sim/fake_qemu.hpp"

// Block jobs (QEMU qapi/job.json): block-commit, of what the guest writes to and of what is below.
namespace nbdelta::sim {

namespace json = qapi::json;
using qapi::Nothing;

Job& FakeQemu::find_job(const std::string& id, std::string_view /*verb*/) {
  for (Job& job : jobs_)
    if (job.id == id)
      return job;
  throw BlockError("Job not found", "GenericError");
}

void FakeQemu::set_status(Job& job, const std::string& status) {
  job.status = status;
  emit(std::string(qapi::JobStatusChange::kName), {{"status", status}, {"id", job.id}});
}

Nothing FakeQemu::block_commit(const qapi::BlockCommit& command) {
  Node& active = graph_.lookup(command.device);
  if (graph_.device_of(active) == nullptr)
    refuse("Need a root block node");
  Node* top = command.top_node ? graph_.find(*command.top_node) : &active;
  if (top == nullptr || (top != &active && !graph_.is_below(*top, active)))
    refuse("'{}' is not in this backing file chain", command.top_node.value_or(""));
  Node* base = command.base_node ? graph_.find(*command.base_node) : nullptr;
  if (!command.base_node) {
    base = top;
    while (base->backing != nullptr)
      base = base->backing;
  }
  if (base == nullptr || (base != top && !graph_.is_below(*base, *top)))
    refuse("'{}' is not in this backing file chain", command.base_node.value_or(""));
  if (base == top)
    refuse("cannot commit an image into itself");
  const bool intermediate = top != &active;
  if (!intermediate && command.backing_file)
    refuse("'backing-file' specified, but 'top' is the active layer");
  const std::string id = command.job_id.value_or("");
  for (const Job& job : jobs_)
    if (job.id == id)
      refuse("Job ID '{}' already in use", id);
  for (const Node* node = &active; node != nullptr; node = node->backing)
    if (!node->job.empty())
      refuse("Node '{}' is busy: block device is in use by block job: commit", node->name);
  graph_.set_read_only(*base, false);

  Job& job = jobs_.emplace_back();
  job.id = id;
  job.active = &active;
  job.top = top;
  job.base = base;
  job.backing_file = command.backing_file;
  job.intermediate = intermediate;
  job.auto_finalize = command.auto_finalize.value_or(true);
  job.auto_dismiss = command.auto_dismiss.value_or(true);
  job.serial = ++last_job_;
  job.length = top->image->granules();
  job.granule_size = top->image->granule_size();
  for (std::uint64_t granule = 0; granule < job.length; ++granule)
    for (const Node* node = top; node != base; node = node->backing)
      if (node->image->held(granule) != Held::nothing) {
        job.dirty.insert(granule);
        break;
      }
  for (Node* node = top; node != nullptr; node = node->backing) {
    node->job = id;
    if (node == base)
      break;
  }
  set_status(job, "created");
  set_status(job, "running");
  start_copying(job);
  return {};
}

void FakeQemu::start_copying(Job& job) {
  if (std::exchange(job.copying, true))
    return;
  asio::co_spawn(executor_, run_job(job.serial), asio::detached);
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
  while (true) {
    co_await clock_->wait(timing_.job_granule);
    Job* job = working_job(serial);
    if (job == nullptr)
      co_return;
    if (job->cancelled) {
      conclude(*job, "Operation canceled");
      co_return;
    }
    if (job->dirty.empty()) {
      job->copying = false;
      converge(*job);
      co_return;
    }
    const auto refusal = hooks_.job_error(job->id);
    std::string error = refusal.value_or("");
    const std::uint64_t granule = *job->dirty.begin();
    try {
      if (error.empty())
        graph_.copy(*job->top, *job->base, granule);
    } catch (const Error& failure) {
      error = failure.what();
    }
    if (!error.empty()) {
      conclude(*job, error);
      co_return;
    }
    job->dirty.erase(granule);
    ++job->done;
    hooks_.step("job copied");
  }
}

void FakeQemu::converge(Job& job) {
  if (job.intermediate) {
    make_pending(job);
  } else if (job.status == "running") {
    graph_.flush(*job.base);
    set_status(job, "ready");
    emit("BLOCK_JOB_READY", {{"device", job.id}, {"type", "commit"}});
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
void FakeQemu::conclude(Job& job, const std::string& error) {
  job.error = error;
  const std::string id = job.id;
  if (!error.empty()) {
    set_status(job, "aborting");
    release(job);
    if (job.intermediate || version_.major >= 10)
      graph_.set_read_only(*job.base, true);  // QEMU 7.2 leaves an active commit's writable
  } else {
    release(job);
    if (job.intermediate)
      finish_intermediate(job);
    else
      finish_active(job);
  }
  job.drains = false;
  write_held_back();
  json::object data{{"device", id}, {"type", "commit"}};
  if (!error.empty())
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
    above->image->set_backing({backing, job.base->driver});
    hooks_.step("header names another backing file");
    above->backing = job.base;
  }
  graph_.set_read_only(*job.base, true);
  hooks_.step("base is read-only again");
  graph_.collect();
}

void FakeQemu::release(Job& job) {
  for (const auto& node : graph_.nodes())
    if (node->job == job.id)
      node->job.clear();
}

}  // namespace nbdelta::sim
