#include "client/interruptible.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <exception>
#include <thread>

#include "base/error.hpp"
#include "base/file.hpp"
#include "client/say.hpp"

namespace nbdelta::client {
namespace {

constexpr std::chrono::milliseconds kTick{200};
constexpr std::chrono::milliseconds kPatience{700};

FileDescriptor block_signals(sigset_t& before) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  if (!hangup_is_ignored())
    sigaddset(&signals, SIGHUP);
  ::pthread_sigmask(SIG_BLOCK, &signals, &before);
  FileDescriptor fd(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd)
    fail_errno("signalfd");
  return fd;
}

/// The job's thread and the descriptor that tells that it has ended.
class Watched {
 public:
  explicit Watched(const Interruptible& work)
      : signals_(block_signals(mask_before_)), ended_(::eventfd(0, EFD_CLOEXEC)) {
    if (!ended_)
      fail_errno("eventfd");
    thread_ = std::thread([this, &work] {
      try {
        work.job(stop_);
      } catch (...) {
        error_ = std::current_exception();
      }
      ::eventfd_write(ended_.get(), 1);
    });
  }

  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;
  ~Watched() {
    stop();
    if (thread_.joinable())
      thread_.join();
    ::pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
  }

  /// What happened first within the time: a signal's number, 0 for the end of the job, -1 for
  /// neither.
  int wait(std::chrono::milliseconds time) const {
    std::array<pollfd, 2> fds{pollfd{ended_.get(), POLLIN, 0}, pollfd{signals_.get(), POLLIN, 0}};
    ::poll(fds.data(), fds.size(), static_cast<int>(time.count()));
    signalfd_siginfo info{};
    if (fds[0].revents != 0)
      return 0;
    if (fds[1].revents != 0 && ::read(signals_.get(), &info, sizeof info) == sizeof info)
      return static_cast<int>(info.ssi_signo);
    return -1;
  }

  void stop() { stop_.request_stop(); }

  /// Throws what the job threw.
  void join() {
    thread_.join();
    if (error_)
      std::rethrow_exception(error_);
  }

 private:
  sigset_t mask_before_{};
  FileDescriptor signals_;
  FileDescriptor ended_;
  std::stop_source stop_;
  std::exception_ptr error_;  // read after join()
  std::thread thread_;
};

/// Exits where the job does not end in time. Further signals change nothing: timeout(1) sends two.
void wind_down(Watched& watched, const Interruptible& work, int signal) {
  using Clock = std::chrono::steady_clock;
  watched.stop();
  const auto end = Clock::now() + kPatience;
  for (auto now = Clock::now(); now < end; now = Clock::now())
    if (watched.wait(std::chrono::ceil<std::chrono::milliseconds>(end - now)) == 0)
      return;
  work.abandon();
  ::_exit(128 + signal);
}

}  // namespace

bool hangup_is_ignored() {
  struct sigaction action {};
  ::sigaction(SIGHUP, nullptr, &action);
  return action.sa_handler == SIG_IGN;
}

int run_interruptibly(const Interruptible& work) {
  Watched watched(work);
  int event = -1;
  while ((event = watched.wait(kTick)) < 0)
    work.tick();
  if (event == 0) {
    watched.join();
    return 0;
  }
  wind_down(watched, work, event);
  try {
    watched.join();
    return 0;  // it had just finished
  } catch (const Error& error) {
    say("nbdelta: {}\n", error.what());
    work.interrupted(error);
  }
  return 128 + event;
}

}  // namespace nbdelta::client
