#pragma once

#include <functional>
#include <stop_token>

#include "base/error.hpp"

namespace nbdelta::client {

/// A long job, and what the thread that watches over it does meanwhile.
struct Interruptible {
  /// Runs in a thread of its own; ends soon after a stop is requested.
  std::function<void(std::stop_source& stop)> job;
  /// Several times a second.
  std::function<void()> tick = [] {};
  /// When a job that should end does not (a disk that does not answer): called before the process
  /// exits at once, from the watching thread.
  std::function<void()> abandon = [] {};
  /// Once the job has ended for a signal: what it threw, which is on stderr by then.
  std::function<void(const Error& error)> interrupted = [](const Error& /*error*/) {};
};

/// Whether whoever started us (nohup) wants us to outlive the terminal: then SIGHUP is no reason to
/// end.
bool hangup_is_ignored();

/// Runs the job. SIGINT, SIGTERM or SIGHUP stops it; it has 700 ms to end by itself. Returns 0, or
/// 128 + the signal that interrupted it; throws what the job threw otherwise. Call it before there
/// are other threads: it blocks these signals for them.
int run_interruptibly(const Interruptible& work);

}  // namespace nbdelta::client
