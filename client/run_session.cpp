#include "client/run_session.hpp"

#include <signal.h>
#include <unistd.h>

#include <boost/asio/signal_set.hpp>
#include <chrono>
#include <exception>
#include <stop_token>

#include "client/backup/real/environment.hpp"
#include "client/console.hpp"
#include "client/interruptible.hpp"
#include "client/say.hpp"

namespace nbdelta::client {
namespace {

constexpr std::chrono::milliseconds kTick{200};

}  // namespace

int run_session(const GuestOptions& options,
                const std::function<asio::awaitable<void>(backup::Environment& environment)>& job,
                const std::function<void()>& tick) {
  asio::io_context loop;
  std::stop_source stop;
  const auto environment = backup::real_environment(
      loop,
      {.plugin = options.plugin.empty() ? backup::default_plugin() : options.plugin,
       .pull = pull::Settings()},
      stop.get_token());
  int received = 0;
  asio::signal_set signals(loop, SIGINT, SIGTERM);
  if (!hangup_is_ignored())
    signals.add(SIGHUP);
  std::function<void(const boost::system::error_code&, int)> on_signal =
      [&](const boost::system::error_code& error, int number) {
        if (error)
          return;
        if (received != 0)
          ::_exit(128 + number);
        received = number;
        say("nbdelta: ending the session; once more ends it at once, and leaves it to 'nbdelta "
            "recover'\n");
        stop.request_stop();
        signals.async_wait(on_signal);
      };
  signals.async_wait(on_signal);
  asio::steady_timer timer(loop);
  std::function<void(const boost::system::error_code&)> on_tick =
      [&](const boost::system::error_code& error) {
        if (error)
          return;
        tick();
        timer.expires_after(kTick);
        timer.async_wait(on_tick);
      };
  on_tick({});
  std::exception_ptr failure;
  asio::co_spawn(loop, job(*environment), [&](const std::exception_ptr& error) {
    failure = error;
    loop.stop();
  });
  loop.run();
  if (!failure)
    return 0;
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    print_failure(options.json, received == 0 ? result_of(error) : "interrupted", error.what());
    if (received == 0)
      throw;
    say("nbdelta: {}\n", error.what());
  }
  return 128 + received;
}

}  // namespace nbdelta::client
