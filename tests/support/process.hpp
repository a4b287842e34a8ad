#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.hpp"

namespace nbdelta::testing {

/// A program and its arguments. The program is searched in $PATH and the sbin folders.
using Command = std::vector<std::string>;

struct ProcessOptions {
  std::string input;                     // what the process reads from stdin
  std::vector<std::string> environment;  // "NAME=value", over our own environment
  std::string folder;                    // working folder; empty: ours
};

/// How a process ended.
struct Outcome {
  int status = 0;  // exit status; 128 + signal number where a signal ended it
  std::string out;
  std::string err;

  bool ok() const { return status == 0; }
};

/// The absolute path of a program. Throws Error (ENOENT) that names the Debian package which has
/// it: a test that lacks a program fails.
std::string find_program(const std::string& name);

/// Joins a command for messages.
std::string to_string(const Command& command);

Command joined(Command first, const Command& second);

/// Against what hangs; a machine may be very busy, and sanitizers slow.
inline constexpr std::chrono::milliseconds kDefaultTimeout{300'000};

/// Runs a command to its end. Throws Error when the program is missing, or when it runs longer than
/// `timeout` (it is killed then).
Outcome run(const Command& command, const ProcessOptions& options = {},
            std::chrono::milliseconds timeout = kDefaultTimeout);

/// The same, and throws Error with what the command wrote unless it exits with 0. Returns stdout.
std::string run_ok(const Command& command, const ProcessOptions& options = {},
                   std::chrono::milliseconds timeout = kDefaultTimeout);

/// A process that runs beside the test. It ends with the object (SIGTERM, and SIGKILL 5 s later),
/// and with the thread that started it. For one thread.
class Background {
 public:
  explicit Background(Command command, const ProcessOptions& options = {});
  Background(Background&& other) noexcept;
  Background& operator=(Background&&) = delete;
  ~Background();

  pid_t pid() const { return pid_; }
  const Command& command() const { return command_; }

  bool running();
  /// Nothing where the process has ended.
  void signal(int number);
  /// How the process ended; empty where it still runs after `timeout`.
  std::optional<Outcome> wait(std::chrono::milliseconds timeout);
  /// SIGTERM, SIGKILL 5 s later; then how it ended.
  Outcome stop();

  /// What it has written so far.
  std::string out() const;
  std::string err() const;

 private:
  Command command_;
  pid_t pid_ = -1;
  FileDescriptor pidfd_;
  FileDescriptor out_;  // both in memory: a process never waits for us to read
  FileDescriptor err_;
  std::optional<int> status_;
};

}  // namespace nbdelta::testing
