#include "client/backup/real/child.hpp"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "base/error.hpp"

namespace nbdelta::client::backup {
namespace {

constexpr std::chrono::milliseconds kPoll{2};

/// Frees what posix_spawn needs.
struct Actions {
  posix_spawn_file_actions_t files{};
  posix_spawnattr_t attributes{};

  Actions() {
    ::posix_spawn_file_actions_init(&files);
    ::posix_spawnattr_init(&attributes);
  }
  Actions(const Actions&) = delete;
  Actions& operator=(const Actions&) = delete;
  ~Actions() {
    ::posix_spawn_file_actions_destroy(&files);
    ::posix_spawnattr_destroy(&attributes);
  }
};

}  // namespace

Child::Child(const std::vector<std::string>& command, const ChildOptions& options) {
  Actions actions;
  if (options.input >= 0)
    ::posix_spawn_file_actions_adddup2(&actions.files, options.input, STDIN_FILENO);
  else
    ::posix_spawn_file_actions_addopen(&actions.files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (options.output >= 0) {
    ::posix_spawn_file_actions_adddup2(&actions.files, options.output, STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(
        &actions.files, options.errors >= 0 ? options.errors : options.output, STDERR_FILENO);
  }
  // A server that outlives us must not keep QMP's only connection open.
  ::posix_spawn_file_actions_addclosefrom_np(&actions.files, STDERR_FILENO + 1);
  // What we ignore or block must not be ignored or blocked there.
  sigset_t none;
  sigset_t usual;
  ::sigemptyset(&none);
  ::sigemptyset(&usual);
  ::sigaddset(&usual, SIGPIPE);
  ::sigaddset(&usual, SIGXFSZ);
  ::posix_spawnattr_setsigmask(&actions.attributes, &none);
  ::posix_spawnattr_setsigdefault(&actions.attributes, &usual);
  short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
  if (options.session_leader)
    flags |= POSIX_SPAWN_SETSID;
  ::posix_spawnattr_setflags(&actions.attributes, flags);

  std::vector<char*> arguments;
  for (const std::string& argument : command)
    arguments.push_back(const_cast<char*>(argument.c_str()));  // not changed: POSIX's signature
  arguments.push_back(nullptr);
  const int error = ::posix_spawnp(&pid_, arguments[0], &actions.files, &actions.attributes,
                                   arguments.data(), environ);
  if (error != 0)
    fail(error, "{}: cannot be started: {}", command[0], std::strerror(error));
}

std::optional<int> Child::status() {
  int status = 0;
  if (!status_ && ::waitpid(pid_, &status, WNOHANG) == pid_)
    status_ = status;
  return status_;
}

void Child::signal(int number) {
  if (running())
    ::kill(pid_, number);
}

void Child::end(std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (running()) {
    if (std::chrono::steady_clock::now() > deadline)
      signal(SIGKILL);
    std::this_thread::sleep_for(kPoll);
  }
}

}  // namespace nbdelta::client::backup
