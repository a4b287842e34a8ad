#include "client/pull/worker.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "base/arithmetic.hpp"

namespace nbdelta::client::pull {
namespace {

using Clock = RateLimiter::Clock;

constexpr std::size_t kPage = 4096;
// How long a throttled slot may overlook that it should stop.
constexpr std::chrono::milliseconds kLongestSleep{100};

std::vector<asio::awaitable<void>> just(asio::awaitable<void> task) {
  std::vector<asio::awaitable<void>> tasks;
  tasks.push_back(std::move(task));
  return tasks;
}

}  // namespace

void Worker::Unmap::operator()(std::byte* memory) const {
  ::munmap(memory, length);
}

Worker::Worker(nbd::Source& source, target::Target& target, Work& work, Counters& counters,
               unsigned depth)
    : source_(source), work_(work), counters_(counters), writer_(target.writer(source.loop())) {
  const std::size_t each = round_up(work.limits().request_size, kPage);
  void* memory =
      ::mmap(nullptr, each * depth, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)  // NOLINT: a macro of the C library
    fail_errno("{} buffers of {} bytes", depth, each);
  memory_ = {static_cast<std::byte*>(memory), Unmap{each * depth}};
  for (unsigned i = 0; i < depth; ++i)
    slots_.push_back({std::span(memory_.get() + i * each, each), std::nullopt});
}

Worker::~Worker() = default;

void Worker::run(const std::stop_token& stop) {
  stop_ = stop;
  const std::stop_callback cancel(
      stop, [this] { asio::post(source_.loop(), [this] { writer_->cancel(); }); });
  source_.run(just(writer_->open()));
  for (bool again = true; again;) {
    try {
      run_slots();
      again = false;
    } catch (const nbd::ConnectionLost& lost) {
      if (given_up_)
        std::rethrow_exception(given_up_);
      source_.reconnect(lost);
      ++counters_.retries;
    }
  }
  source_.run(just(writer_->flush()));
}

void Worker::run_slots() {
  std::vector<asio::awaitable<void>> tasks;
  for (Slot& slot : slots_)
    tasks.push_back(settle_all(slot));
  source_.run(std::move(tasks));
}

asio::awaitable<void> Worker::settle_all(Slot& slot) {
  try {
    while (!stop_.stop_requested() && !given_up_) {
      if (!slot.operation)
        slot.operation = work_.next();
      if (!slot.operation)
        co_return;
      if (slot.operation->kind == Operation::Kind::read)
        co_await settle_read(slot);
      else
        co_await zero(slot.operation->offset, slot.operation->length);
      slot.operation.reset();
    }
  } catch (const nbd::ConnectionLost&) {
    throw;
  } catch (...) {  // the other slots need not go on
    if (!given_up_)
      given_up_ = std::current_exception();
    source_.connection().lose_soon("given up");
    writer_->cancel();
    throw;
  }
  fail(ECANCELED, "interrupted");
}

asio::awaitable<void> Worker::settle_read(Slot& slot) {
  const Operation& operation = *slot.operation;
  if (work_.is_packed()) {
    const std::span<std::byte> data = slot.buffer.first(operation.length);
    co_await throttle(data.size());
    if (const std::optional<std::uint64_t> packed = source_.packed_data())
      co_await read(data, *packed + data_before(operation));
    else
      co_await read_parts(operation, data);
    co_await writer_->write_packed(data, operation.first, operation.offset);
    counters_.written += data.size();
  } else {
    const ReadRange range = read_range(operation, work_.limits(), work_.disk_size());
    const std::span<std::byte> data = slot.buffer.first(range.length);
    co_await throttle(data.size());
    co_await read(data, range.offset);
    co_await write_parts(operation, data, range.offset);
  }
  source_.made_progress();
}

asio::awaitable<void> Worker::read(std::span<std::byte> out, std::uint64_t offset) {
  co_await source_.connection().read(out, offset);
  counters_.read += out.size();
  ++counters_.requests;
}

/// What a packed export would have, from the disk itself.
asio::awaitable<void> Worker::read_parts(const Operation& operation, std::span<std::byte> out) {
  for (auto run = operation.first; !out.empty(); run.next()) {
    if (run.extent().state != image::State::data)
      continue;
    const std::uint64_t from = std::max(operation.offset, run.extent().offset);
    const auto part = out.first(std::min<std::uint64_t>(out.size(), run.extent().end() - from));
    co_await read(part, from);
    out = out.subspan(part.size());
  }
}

/// `data` was read from data_offset on, and covers the operation.
asio::awaitable<void> Worker::write_parts(const Operation& operation,
                                          std::span<const std::byte> data,
                                          std::uint64_t data_offset) {
  for (auto run = operation.first; !run.at_end() && run.extent().offset < operation.end();
       run.next()) {
    const std::uint64_t begin = std::max(run.extent().offset, operation.offset);
    const std::uint64_t length = std::min(run.extent().end(), operation.end()) - begin;
    if (run.extent().state == image::State::data) {
      co_await writer_->write(data.subspan(begin - data_offset, length), begin);
      counters_.written += length;
    } else if (image::reads_zero(run.extent().state)) {
      co_await zero(begin, length);
    }
  }
}

asio::awaitable<void> Worker::zero(std::uint64_t offset, std::uint64_t length) {
  co_await writer_->zero(offset, length);
  counters_.zeroed += length;
}

asio::awaitable<void> Worker::throttle(std::uint64_t bytes) {
  auto left = work_.book(bytes);
  if (left == Clock::duration::zero())
    co_return;
  const auto until = Clock::now() + left;
  asio::steady_timer timer(source_.loop());
  while (Clock::now() < until && !stop_.stop_requested()) {
    timer.expires_at(std::min(until, Clock::now() + kLongestSleep));
    co_await timer.async_wait(asio::use_awaitable);
  }
}

}  // namespace nbdelta::client::pull
