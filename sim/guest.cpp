#include "sim/guest.hpp"

#include <algorithm>
#include <utility>

#include "sim/unawaited.hpp"

namespace nbdelta::sim {
namespace {

// Requests that the kernel sends at once when it writes back: as deep as a virtio-blk queue is
// filled by one flusher thread, no measured value.
constexpr std::size_t kBatch = 16;

}  // namespace

Guest::Guest(asio::any_io_executor executor, Clock& clock, Disks& disks, GuestSetup setup,
             std::uint64_t seed)
    : executor_(executor),
      clock_(&clock),
      disks_(&disks),
      setup_(std::move(setup)),
      storage_(setup_.storage, seed ^ 0x57024a6e),
      random_(seed),
      cache_(disks.count()),
      changed_(std::move(executor)),
      held_(disks.count()),
      longest_since_(clock.now()) {
  for (const DiskLoad& load : setup_.loads)
    for (std::uint64_t i = 0; i < load.load.programs; ++i) {
      programs_.push_back(std::make_unique<Program>());
      Program& program = *programs_.back();
      program.disk = load.disk;
      program.direct = load.load.direct;
      program.load = make_load(load.load, disks.granules(load.disk) * disks.granule_size(load.disk),
                               random_.next());
    }
}

void Guest::start() {
  for (const auto& program : programs_)
    asio::co_spawn(executor_, run(*program), kUnawaited);
}

void Guest::stop() {
  changed_.drop();
}

// ---- Programs ----

asio::awaitable<void> Guest::run(Program& program) {
  Clock::Time due = clock_->now();
  for (std::uint64_t i = 0; i < setup_.most_requests; ++i) {
    const std::optional<Request> request = program.load->next();
    if (!request)
      co_return;
    due += request->gap;
    if (due > clock_->now())
      co_await clock_->wait_until(due);
    due = clock_->now();  // what a stall kept from being done is not made up for
    program.waits_since = due;
    co_await carry_out(program, *request);
    const Clock::Duration latency = clock_->now() - due;
    program.waits_since.reset();
    longest_ = std::max(longest_, clock_->now() - std::max(due, longest_since_));
    completed({program.disk, request->kind, due, latency});
    // Not even memory is faster; and virtual time must pass.
    if (latency.count() == 0 && request->gap.count() == 0)
      co_await clock_->wait(std::chrono::microseconds(5));
  }
}

asio::awaitable<void> Guest::carry_out(const Program& program, const Request& request) {
  const Range range{request.offset, request.offset + request.length};
  if (request.kind == Request::Kind::sync) {
    co_await sync(program.disk, range);
    co_return;
  }
  co_await until_released(program.disk);
  if (request.kind != Request::Kind::write)
    co_await erase(program.disk, range, request.kind);
  else if (program.direct)
    co_await write_direct(program.disk, range);
  else
    co_await write_cached(program.disk, range);
}

asio::awaitable<void> Guest::until_released(std::size_t disk) {
  while (held_[disk])
    co_await changed_.wait();
}

asio::awaitable<void> Guest::write_cached(std::size_t disk, Range range) {
  while (dirty_bytes() >= setup_.cache.dirty_limit || held_[disk]) {
    start_writing_back();
    co_await changed_.wait();
  }
  cache_.mark(disk, range, clock_->now());
  start_writing_back();
}

asio::awaitable<void> Guest::write_direct(std::size_t disk, Range range) {
  cache_.forget(disk, range);
  in_flight_.push_back({disk, range});
  co_await clock_->wait_until(storage_.write(clock_->now(), range.length()));
  co_await put(disk, range);
}

/// A discard may leave what it does not cover as a whole; zeros there are written.
asio::awaitable<void> Guest::erase(std::size_t disk, Range range, Request::Kind kind) {
  const std::uint64_t size = disks_->granule_size(disk);
  do {
    co_await until_quiet(disk, range);
    co_await until_released(disk);
  } while (is_in_flight(disk, range));
  cache_.forget(disk, range);
  in_flight_.push_back({disk, range});
  co_await clock_->wait_until(storage_.write(clock_->now(), 0));
  for (std::uint64_t granule = range.begin / size; granule * size < range.end; ++granule) {
    const bool whole = granule * size >= range.begin && (granule + 1) * size <= range.end;
    if (whole || kind == Request::Kind::zero)
      co_await put_granule(disk, granule, whole ? Disks::Fill::zeros : Disks::Fill::data);
  }
  landed(disk, range);
}

asio::awaitable<void> Guest::sync(std::size_t disk, Range range) {
  co_await write_all(disk, range, Clock::Time::max());
  co_await until_quiet(disk, range);
  co_await clock_->wait_until(storage_.flush(clock_->now()));
  disks_->flush(disk);
}

bool Guest::is_in_flight(std::size_t disk, Range range) const {
  return std::any_of(in_flight_.begin(), in_flight_.end(), [&](const InFlight& each) {
    return each.disk == disk && each.range.overlaps(range);
  });
}

asio::awaitable<void> Guest::until_quiet(std::size_t disk, Range range) {
  while (is_in_flight(disk, range))
    co_await changed_.wait();
}

Clock::Duration Guest::longest_stall() const {
  Clock::Duration longest = longest_;
  for (const auto& program : programs_)
    if (program->waits_since)
      longest = std::max(longest, clock_->now() - std::max(*program->waits_since, longest_since_));
  return longest;
}

void Guest::reset_longest_stall() {
  longest_ = {};
  longest_since_ = clock_->now();
}

// ---- Writing back ----

void Guest::start_writing_back() {
  if (dirty_bytes() > setup_.cache.background && !std::exchange(relieving_, true))
    asio::co_spawn(executor_, relieve_pressure(), kUnawaited);
  if (!std::exchange(expiring_, true))
    asio::co_spawn(executor_, write_expired(), kUnawaited);
}

asio::awaitable<void> Guest::relieve_pressure() {
  bool any = true;
  while (any && cache_.dirty_bytes() > setup_.cache.background) {
    any = false;
    for (std::size_t disk = 0; disk < held_.size(); ++disk) {
      const bool wrote = co_await write_back(disk, kWholeDisk, Clock::Time::max());
      any = any || wrote;
    }
  }
  relieving_ = false;
}

asio::awaitable<void> Guest::write_expired() {
  while (cache_.dirty_bytes() != 0) {
    co_await clock_->wait(setup_.cache.interval);
    const Clock::Time before = clock_->now() - setup_.cache.expire;
    for (std::size_t disk = 0; disk < held_.size(); ++disk)
      co_await write_all(disk, kWholeDisk, before);
  }
  expiring_ = false;
}

// GCC 12 loses arguments where a coroutine is awaited in a loop's condition.
asio::awaitable<void> Guest::write_all(std::size_t disk, Range range, Clock::Time dirty_before) {
  for (bool more = true; more;)
    more = co_await write_back(disk, range, dirty_before);
}

asio::awaitable<bool> Guest::write_back(std::size_t disk, Range range, Clock::Time dirty_before) {
  std::vector<Range> batch;
  Clock::Time done{};
  while (batch.size() < kBatch) {
    const std::optional<Range> run = cache_.take(disk, range, dirty_before);
    if (!run)
      break;
    done = std::max(done, storage_.write(clock_->now(), run->length()));
    in_flight_.push_back({disk, *run});
    in_flight_bytes_ += run->length();
    batch.push_back(*run);
  }
  if (batch.empty())
    co_return false;
  co_await clock_->wait_until(done);
  for (const Range& run : batch) {
    co_await put(disk, run);
    in_flight_bytes_ -= run.length();
  }
  changed_.notify();
  co_return true;
}

/// What has come to the disk.
asio::awaitable<void> Guest::put(std::size_t disk, Range range) {
  const std::uint64_t size = disks_->granule_size(disk);
  for (std::uint64_t granule = range.begin / size; granule * size < range.end; ++granule)
    co_await put_granule(disk, granule, Disks::Fill::data);
  landed(disk, range);
}

void Guest::landed(std::size_t disk, Range range) {
  written_ += range.length();
  const auto found = std::find_if(in_flight_.begin(), in_flight_.end(), [&](const InFlight& each) {
    return each.disk == disk && each.range == range;
  });
  in_flight_.erase(found);
  changed_.notify();
}

asio::awaitable<void> Guest::put_granule(std::size_t disk, std::uint64_t granule,
                                         Disks::Fill fill) {
  if (granule >= disks_->granules(disk))
    co_return;  // the end of a disk whose last page is not whole
  struct Outcome {
    bool done = false;
    std::exception_ptr error;
  };
  while (true) {
    while (paused_)
      co_await changed_.wait();
    const auto outcome = std::make_shared<Outcome>();
    const WriteDone done = [this, outcome](const std::exception_ptr& error) {
      outcome->done = true;
      outcome->error = error;
      changed_.notify();
    };
    disks_->write(disk, granule, fill, done);
    while (!outcome->done)
      co_await changed_.wait();
    if (!outcome->error)
      co_return;
    paused_ = true;
    failed(outcome->error);
  }
}

void Guest::resume() {
  paused_ = false;
  changed_.notify();
}

// ---- Freezing (Linux fs/super.c, freeze_super: writers are held first, then all is written) ----

asio::awaitable<void> Guest::freeze() {
  // How busy the host is at this moment: the same for all of them.
  const double slowness = draw_jitter(random_, setup_.freeze_jitter);
  for (std::size_t disk = 0; disk < held_.size(); ++disk) {
    held_[disk] = true;
    co_await sync(disk, kWholeDisk);
    co_await clock_->wait(std::chrono::duration_cast<Clock::Duration>(setup_.freeze * slowness));
  }
}

void Guest::thaw() {
  held_.assign(held_.size(), false);
  changed_.notify();
}

}  // namespace nbdelta::sim
