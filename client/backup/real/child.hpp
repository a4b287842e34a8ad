#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "base/file.hpp"

namespace nbdelta::client::backup {

/// A program that we have started.
struct ChildOptions {
  int input = -1;               // its stdin; -1: /dev/null
  int output = -1;              // its stdout and stderr; -1: ours
  int errors = -1;              // its stderr; -1: as `output`
  bool session_leader = false;  // signals to our process group do not reach it
};

/// Does not end the process when it goes. For one thread.
class Child {
 public:
  /// The program is searched in $PATH. Throws Error (ENOENT and others).
  Child(const std::vector<std::string>& command, const ChildOptions& options);
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  /// How it ended (as waitpid(2) says), once it has.
  std::optional<int> status();
  bool running() { return !status(); }
  void signal(int number);
  /// Waits; SIGKILL after `patience`.
  void end(std::chrono::milliseconds patience);

 private:
  pid_t pid_ = -1;
  std::optional<int> status_;
};

}  // namespace nbdelta::client::backup
