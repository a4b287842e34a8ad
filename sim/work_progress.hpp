#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

namespace nbdelta::sim {

/// "40 of 200 seeds, 20 %, 71.0 a second, 2.25 s left". `parts` is what they are called.
std::string work_progress_line(std::uint64_t done, std::uint64_t total, const std::string& parts,
                               double seconds);

/// Shows on stderr how much of some work is done: one line that is redrawn where that is a
/// terminal, nothing elsewhere. It goes with the object.
class WorkProgress {
 public:
  WorkProgress(std::uint64_t total, std::string parts);
  WorkProgress(const WorkProgress&) = delete;
  WorkProgress& operator=(const WorkProgress&) = delete;
  ~WorkProgress();

  /// For any thread.
  void done(std::uint64_t count = 1) { done_ += count; }

 private:
  void show(const std::stop_token& stop);

  std::uint64_t total_;
  std::string parts_;
  std::atomic<std::uint64_t> done_ = 0;
  std::mutex mutex_;  // for the condition alone
  std::condition_variable_any stopped_;
  std::jthread thread_;  // none where nothing is shown
};

}  // namespace nbdelta::sim
