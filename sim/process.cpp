#include "sim/process.hpp"

#include <algorithm>
#include <utility>

#include "sim/unawaited.hpp"

namespace nbdelta::sim {

void Parked::resume(boost::system::error_code error) {
  if (!handler_)
    return;
  asio::post(executor_,
             [handler = std::move(handler_), error]() mutable { std::move (*handler)(error); });
}

void VirtualTime::wake_at(Clock::Time time, std::shared_ptr<Parked> parked) {
  waiting_.emplace(std::max(time, now_), std::move(parked));
}

bool VirtualTime::advance() {
  while (!waiting_.empty()) {
    const auto first = waiting_.begin();
    const std::shared_ptr<Parked> parked = std::move(first->second);
    const Clock::Time time = first->first;
    waiting_.erase(first);
    if (!parked->waits())
      continue;  // it was cancelled, or killed
    now_ = time;
    parked->resume();
    return true;
  }
  return false;
}

Process::Process(VirtualTime& time, std::string name)
    : time_(&time), name_(std::move(name)), loop_(std::make_unique<asio::io_context>(1)) {}

void Process::spawn(asio::awaitable<void> coroutine) {
  ++running_;
  asio::co_spawn(*loop_, std::move(coroutine), [this](const std::exception_ptr& error) {
    --running_;
    if (!failure_ && is_failure(error))
      failure_ = error;
  });
}

void Process::spend(Clock::Duration duration) {
  if (duration.count() == 0)
    return;
  busy_until_ = clock_.now() + duration;
  // Somebody must wait for that time, or it does not come.
  auto alarm = std::make_shared<Parked>();
  alarm->executor_ = executor();
  alarm->handler_ = std::make_unique<Parked::Handler>([](boost::system::error_code) {});
  parked_.push_back(alarm);
  time_->wake_at(busy_until_, std::move(alarm));
}

bool Process::run() {
  if (!alive_ || stopped_ || busy_until_ > time_->now())
    return false;
  loop_->restart();
  return loop_->poll() != 0;
}

void Process::kill() {
  if (!alive_)
    return;
  alive_ = false;
  const std::vector<std::shared_ptr<Parked>> parked = std::move(parked_);
  for (const std::shared_ptr<Parked>& each : parked)
    each->handler_ = nullptr;
  loop_.reset();
}

asio::awaitable<boost::system::error_code> Process::park(std::shared_ptr<Parked> parked) {
  if (parked_.size() > 32)
    std::erase_if(parked_, [](const auto& each) { return !each->waits(); });
  parked_.push_back(parked);
  const std::weak_ptr<Parked> weak = parked;
  // Named, and without an owner of its own: GCC 12 destroys it twice otherwise.
  const auto start = [this, &weak](auto handler) {
    const std::shared_ptr<Parked> place = weak.lock();
    const auto slot = asio::get_associated_cancellation_slot(handler);
    place->executor_ = executor();
    place->handler_ = std::make_unique<Parked::Handler>(std::move(handler));
    if (!slot.is_connected())
      return;
    auto cancellation = slot;
    // The handler owns the coroutine, and that the slot: nothing here may own the handler.
    cancellation.assign([cancelled = weak](asio::cancellation_type) {
      if (const auto waiting = cancelled.lock())
        waiting->resume(asio::error::operation_aborted);
    });
  };
  constexpr auto kToken = asio::as_tuple(asio::use_awaitable);
  const auto [error] =
      co_await asio::async_initiate<decltype(kToken), void(boost::system::error_code)>(start,
                                                                                       kToken);
  co_return error;
}

asio::awaitable<void> Process::ProcessClock::pass_until(Time time) {
  auto parked = std::make_shared<Parked>();
  process_->time_->wake_at(time, parked);
  co_await process_->park(std::move(parked));
}

}  // namespace nbdelta::sim
