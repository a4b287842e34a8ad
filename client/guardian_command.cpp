#include "client/guardian_command.hpp"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <syslog.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <memory>
#include <random>
#include <string>

#include "client/backup/commit_guard.hpp"
#include "client/backup/guardian.hpp"
#include "client/backup/real/environment.hpp"
#include "client/exit_status.hpp"
#include "client/qmp/socket_channel.hpp"

namespace nbdelta::client {
namespace {

using namespace std::chrono_literals;

/// Whatever ends the session must not end what thaws the guest.
void ignore_signals() {
  for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGUSR1, SIGUSR2})
    std::signal(number, SIG_IGN);
}

/// Who reads to its end what the session has said must not wait for us, who outlive it.
void let_go_of_stderr() {
  const FileDescriptor nowhere(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  if (nowhere)
    ::dup2(nowhere.get(), STDERR_FILENO);
}

/// The session's end of standard input.
std::unique_ptr<qmp::Channel> session_channel(asio::io_context& loop) {
  FileDescriptor session(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  if (!session)
    fail_errno("standard input");
  return qmp::adopt_socket(loop.get_executor(), std::move(session), "the session");
}

/// What refers to the session's process, and to no later one of its number. Throws Error where it
/// has died already.
FileDescriptor session_process() {
  ucred session{};
  socklen_t length = sizeof session;
  if (::getsockopt(STDIN_FILENO, SOL_SOCKET, SO_PEERCRED, &session, &length) != 0)
    fail_errno("standard input");
  FileDescriptor process(static_cast<int>(::syscall(SYS_pidfd_open, session.pid, 0)));
  if (!process)
    fail_errno("pidfd_open");
  if (::getppid() != session.pid)  // it started us
    fail(ESRCH, "the session has died");
  return process;
}

int run(asio::io_context& loop, asio::awaitable<void> guard) {
  std::exception_ptr failure;
  asio::co_spawn(loop, std::move(guard), [&](const std::exception_ptr& error) { failure = error; });
  loop.run();
  if (failure)
    std::rethrow_exception(failure);
  return kDone;
}

int run_guardian(const std::string& agent) {
  ignore_signals();
  ::prctl(PR_SET_NAME, "nbdelta-guard");
  asio::io_context loop;
  RealClock clock;
  std::random_device random;
  const std::int64_t seed = std::uniform_int_distribution<std::int64_t>(1, 1LL << 40)(random);
  backup::Guardian guardian(
      [&]() { return qmp::connect(agent, "the guest agent", clock, clock.now() + 10s); },
      session_channel(loop), clock, seed, let_go_of_stderr);
  try {
    return run(loop, guardian.run());
  } catch (const Error& error) {  // it had to leave the guest alone
    ::syslog(LOG_DAEMON | LOG_ERR, "nbdelta guardian: %s", error.what());
    throw;
  }
}

int run_commit_guard() {
  ignore_signals();
  ::prctl(PR_SET_NAME, "nbdelta-commit");
  asio::io_context loop;
  const auto environment = backup::real_environment(loop, {}, {});
  const FileDescriptor session = session_process();
  const auto kill_session = [&] {
    ::syscall(SYS_pidfd_send_signal, session.get(), SIGKILL, nullptr, 0);
  };
  return run(loop, backup::guard_commit(*environment, session_channel(loop), kill_session));
}

}  // namespace

std::function<int()> add_guardian_command(CLI::App& app) {
  const auto agent = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("guardian", "Started by a session; not for people");
  command->group("");  // not in the help
  command->add_option("AGENT", *agent, "the guest agent's address")->required();
  return [agent] { return run_guardian(*agent); };
}

std::function<int()> add_commit_guard_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("commit-guard", "Started by a session; not for people");
  command->group("");  // not in the help
  return [] { return run_commit_guard(); };
}

}  // namespace nbdelta::client
