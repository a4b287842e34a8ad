#pragma once

#include <chrono>
#include <exception>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "base/error.hpp"
#include "client/asio.hpp"

namespace nbdelta::client {

/// What was waited for did not come in time.
class TimedOut : public Error {
 public:
  explicit TimedOut(const std::string& message) : Error(ETIMEDOUT, message) {}
};

/// The monotonic clock of the machine (CLOCK_MONOTONIC, the same in all its processes), or a
/// virtual one.
class Clock {
 public:
  using Duration = std::chrono::steady_clock::duration;
  using Time = std::chrono::steady_clock::time_point;

  virtual ~Clock() = default;
  virtual Time now() const = 0;
  /// Until then, or until it is cancelled: that is no error here, since whatever waits for an
  /// answer cancels a deadline, and an exception for each would cost more than all else.
  virtual asio::awaitable<void> pass_until(Time time) = 0;

  /// Can be cancelled, and throws then.
  asio::awaitable<void> wait_until(Time time) {
    co_await pass_until(time);
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none)
      throw boost::system::system_error(asio::error::operation_aborted);
  }
  asio::awaitable<void> wait(Duration duration) { return wait_until(now() + duration); }
};

class RealClock final : public Clock {
 public:
  Time now() const override { return std::chrono::steady_clock::now(); }
  asio::awaitable<void> pass_until(Time time) override {
    asio::steady_timer timer(co_await asio::this_coro::executor, time);
    co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
  }
};

/// Runs both until one has ended, and cancels the other. Throws what the first to end threw, but
/// prefers a result of `operation` that came in the same moment.
/// Returns whether `operation` has ended by itself.
inline asio::awaitable<bool> either(asio::awaitable<void> operation, asio::awaitable<void> other) {
  const auto executor = co_await asio::this_coro::executor;
  auto [order, error, other_error] =
      co_await asio::experimental::make_parallel_group(
          asio::co_spawn(executor, std::move(operation), asio::deferred),
          asio::co_spawn(executor, std::move(other), asio::deferred))
          .async_wait(asio::experimental::wait_for_one(), asio::use_awaitable);
  if (!error)
    co_return true;
  if (order[0] == 0)
    std::rethrow_exception(error);
  if (other_error)
    std::rethrow_exception(other_error);
  const auto state = co_await asio::this_coro::cancellation_state;
  if (state.cancelled() != asio::cancellation_type::none)  // both were
    throw boost::system::system_error(asio::error::operation_aborted);
  co_return false;
}

/// The operation's result, or TimedOut (with `what`) at the deadline; it is cancelled then.
template <class T>
asio::awaitable<T> before(Clock& clock, Clock::Time deadline, asio::awaitable<T> operation,
                          std::string what) {
  if constexpr (std::is_void_v<T>) {
    const bool in_time = co_await either(std::move(operation), clock.pass_until(deadline));
    if (!in_time)
      throw TimedOut(what);
  } else {
    std::optional<T> result;
    const auto keep = [](asio::awaitable<T> from, std::optional<T>& to) -> asio::awaitable<void> {
      to.emplace(co_await std::move(from));
    };
    asio::awaitable<void> kept = keep(std::move(operation), result);
    const bool in_time = co_await either(std::move(kept), clock.pass_until(deadline));
    if (!in_time)
      throw TimedOut(what);
    co_return std::move(*result);
  }
}

}  // namespace nbdelta::client
