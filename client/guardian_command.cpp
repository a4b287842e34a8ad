#include "client/guardian_command.hpp"

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <memory>
#include <random>
#include <string>

#include "client/backup/guardian.hpp"
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

int run_guardian(const std::string& agent) {
  ignore_signals();
  ::prctl(PR_SET_NAME, "nbdelta-guard");
  asio::io_context loop;
  RealClock clock;
  FileDescriptor session(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  if (!session)
    fail_errno("standard input");
  backup::Guardian guardian(
      [&]() { return qmp::connect(agent, "the guest agent", clock, clock.now() + 10s); },
      qmp::adopt_socket(loop.get_executor(), std::move(session), "the session"), clock,
      std::uniform_int_distribution<std::int64_t>(
          1, 1LL << 40)(*std::make_unique<std::random_device>()));
  std::exception_ptr failure;
  asio::co_spawn(loop, guardian.run(), [&](const std::exception_ptr& error) { failure = error; });
  loop.run();
  if (failure)
    std::rethrow_exception(failure);
  return kDone;
}

}  // namespace

std::function<int()> add_guardian_command(CLI::App& app) {
  const auto agent = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("guardian", "Started by a session; not for people");
  command->group("");  // not in the help
  command->add_option("AGENT", *agent, "the guest agent's address")->required();
  return [agent] { return run_guardian(*agent); };
}

}  // namespace nbdelta::client
