#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/clock.hpp"

namespace nbdelta::sim {

namespace asio = boost::asio;
using client::Clock;

/// A coroutine that waits for somebody to resume it. It may be gone before: its process was killed.
class Parked {
 public:
  /// Later, on the coroutine's own executor; does nothing the second time.
  void resume(boost::system::error_code error = {});
  bool waits() const { return handler_ != nullptr; }

 private:
  friend class Process;
  using Handler = asio::any_completion_handler<void(boost::system::error_code)>;
  std::unique_ptr<Handler> handler_;  // assigning one to another does not end in Boost 1.81
  asio::any_io_executor executor_;
};

/// The time of all processes: it passes only when nobody has anything to do, so that hours cost
/// nothing and every delay is exact.
class VirtualTime {
 public:
  Clock::Time now() const { return now_; }
  void wake_at(Clock::Time time, std::shared_ptr<Parked> parked);
  /// Lets time pass until somebody wakes up; false where nobody waits.
  bool advance();

 private:
  Clock::Time now_{std::chrono::hours(1)};
  std::multimap<Clock::Time, std::shared_ptr<Parked>> waiting_;
};

/// What an operating system's process is to our coroutines: when it is killed, none of them goes
/// on, and no destructor of theirs does more than free memory.
class Process {
 public:
  Process(VirtualTime& time, std::string name);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() { kill(); }

  const std::string& name() const { return name_; }
  asio::any_io_executor executor() { return loop_->get_executor(); }
  Clock& clock() { return clock_; }

  /// Runs beside the others. What leaves it is kept for failure().
  void spawn(asio::awaitable<void> coroutine);
  /// Whether every coroutine has come to its end.
  bool ended() const { return alive_ && running_ == 0; }
  /// It does something that blocks it for so long. The others go on; for it, the time has passed on
  /// return, and what it does then they see when their time has come as far.
  void spend(Clock::Duration duration);
  const std::exception_ptr& failure() const { return failure_; }

  /// Runs what can run now, unless it is stopped; returns whether there was anything. Throws what
  /// leaves a coroutine that nobody awaits.
  bool run();

  bool alive() const { return alive_; }
  /// Not from inside of one of its coroutines: doom() there, and kill() when it has returned.
  void kill();
  /// From here on it has no effect on anything; it goes on to its next wait at most.
  void doom() { doomed_ = true; }
  bool doomed() const { return doomed_ || !alive_; }
  /// SIGSTOP, from its next wait on, and SIGCONT.
  void stop() { stopped_ = true; }
  void go_on() { stopped_ = false; }
  bool stopped() const { return stopped_; }

  /// Until `parked` is resumed, or this is cancelled: returns with what.
  asio::awaitable<boost::system::error_code> park(std::shared_ptr<Parked> parked);

 private:
  class ProcessClock final : public Clock {
   public:
    explicit ProcessClock(Process& process) : process_(&process) {}
    Time now() const override { return std::max(process_->time_->now(), process_->busy_until_); }
    asio::awaitable<void> pass_until(Time time) override;

   private:
    Process* process_;
  };

  VirtualTime* time_;
  std::string name_;
  ProcessClock clock_{*this};
  std::unique_ptr<asio::io_context> loop_;
  std::vector<std::shared_ptr<Parked>> parked_;
  std::exception_ptr failure_;
  Clock::Time busy_until_{};
  unsigned running_ = 0;
  bool alive_ = true;
  bool doomed_ = false;
  bool stopped_ = false;
};

}  // namespace nbdelta::sim
