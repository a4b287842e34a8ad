#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/file.hpp"

namespace nbdelta::testing {

/// What the fake agent does wrong.
struct AgentFaults {
  std::chrono::milliseconds freeze_takes{0};
  bool freeze_never_answers = false;  // the guest is frozen all the same
  bool freeze_fails_after = false;    // likewise, and an error is answered
  bool dies_in_freeze = false;     // frozen; the channel closes; whoever connects again finds it so
  bool silent = false;             // takes connections and never answers
  bool garbage = false;            // answers everything with noise
  std::string freeze_answer = {};  // frozen; instead of the right one
  std::string version = "7.2";     // as it stands in JSON
  int thaws_that_fail = 0;
  bool frozen_already = false;
  bool freezes_nothing = false;  // there is no file system that it could freeze
  std::chrono::milliseconds answers_late{0};
};

/// The guest agent on a Unix socket, as far as sessions use it, one client at a time. Its log has
/// the names of the commands in their order.
class FakeAgent {
 public:
  FakeAgent(std::string path, AgentFaults faults);
  ~FakeAgent();

  std::vector<std::string> log() const;
  bool frozen() const { return frozen_; }
  int count(const std::string& command) const;
  /// How long the last freeze lasted.
  std::chrono::duration<double> frozen_for() const { return frozen_for_.load(); }

 private:
  void run();
  bool serve(int client);
  bool answer(int client, const std::string& line);

  std::string path_;
  AgentFaults faults_;
  FileDescriptor listener_;
  std::atomic<bool> ending_ = false;
  std::atomic<bool> frozen_ = false;
  std::chrono::steady_clock::time_point frozen_since_;
  std::atomic<std::chrono::duration<double>> frozen_for_{};
  mutable std::mutex mutex_;  // of log_
  std::vector<std::string> log_;
  std::thread thread_;
};

}  // namespace nbdelta::testing
