#include "client/pull/direct.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "client/nbd/run_together.hpp"
#include "client/pull/threads.hpp"

namespace nbdelta::client::pull {
namespace {

using Clock = RateLimiter::Clock;

constexpr std::uint64_t kOperation = 16 * kMiB;  // what one thread takes at a time
constexpr std::uint64_t kChunk = 256 * kKiB;     // of it in one step: stays in a processor's cache
constexpr std::uint64_t kLongRun = kMiB;         // announced, and copied by one thread at a time
constexpr std::chrono::milliseconds kLongestPause{100};

/// Whether it is certain that the kernel copies from `file` by way of the page cache. Elsewhere
/// blocks may be shared, or a server copies, and what is announced would be read for nothing.
bool is_copied_through_page_cache(const File& file) {
  struct statfs facts {};
  if (::fstatfs(file.fd(), &facts) != 0 || (::fcntl(file.fd(), F_GETFL) & O_DIRECT) != 0)
    return false;
  return facts.f_type == EXT4_SUPER_MAGIC || facts.f_type == TMPFS_MAGIC;
}

/// One thread's part.
class DirectWorker {
 public:
  /// `longest_copy`: bytes that the kernel copies in one step. `copying`: all workers' own.
  DirectWorker(asio::io_context& loop, const image::Disk& disk, const image::KnownRuns& known,
               target::Target& target, Work& work, Counters& counters, std::uint64_t longest_copy,
               std::mutex& copying, const std::stop_token& stop)
      : loop_(loop),
        disk_(disk),
        walk_(disk.new_walk(&known)),
        announced_(disk.new_walk(&known)),
        work_(work),
        counters_(counters),
        longest_copy_(longest_copy),
        copying_(copying),
        stop_(stop),
        writer_(target.writer(loop_)),
        buffer_(kChunk) {}

  void run() {
    const std::stop_callback cancel(stop_,
                                    [this] { asio::post(loop_, [this] { writer_->cancel(); }); });
    nbd::run_one(loop_, settle_all());
  }

 private:
  asio::awaitable<void> settle_all() {
    co_await writer_->open();
    while (const std::optional<Operation> operation = work_.next()) {
      for (auto run = operation->first; !run.at_end() && run.extent().offset < operation->end();
           run.next()) {
        const std::uint64_t begin = std::max(run.extent().offset, operation->offset);
        const std::uint64_t end = std::min(run.extent().end(), operation->end());
        if (run.extent().state == image::State::data)
          co_await move(begin, end);
        else if (image::reads_zero(run.extent().state))
          co_await zero(begin, end - begin);
      }
    }
    co_await writer_->flush();
  }

  asio::awaitable<void> zero(std::uint64_t offset, std::uint64_t length) {
    check_stop();
    co_await writer_->zero(offset, length);
    counters_.zeroed += length;
  }

  asio::awaitable<void> move(std::uint64_t offset, std::uint64_t end) {
    // A low rate is the disk's, too.
    if (end - offset >= kLongRun && longest_copy_ >= kLongRun && !disk_.is_in_memory())
      announce(offset, end);
    while (offset < end) {
      std::uint64_t length = copy(offset, end - offset);
      if (length == 0) {
        length = std::min(end - offset, kChunk);
        co_await read_and_write(offset, length);
      }
      offset += length;
    }
  }

  /// The disk goes on with the rest of the run while its beginning is copied.
  void announce(std::uint64_t offset, std::uint64_t end) {
    const File* known = nullptr;
    bool is_read = true;  // what is in no file is read and written, or is zeros
    while (offset < end) {
      check_stop();
      const image::Disk::Place place =
          disk_.place_at(offset, std::min(end - offset, kLongRun), announced_);
      if (place.file != known) {
        known = place.file;
        is_read = known == nullptr || is_copied_through_page_cache(*known);
      }
      if (is_read || !kernel_copies_)
        disk_.will_need(offset, place.length, announced_);
      offset += place.length;
    }
  }

  /// Returns how much the kernel has copied; 0 where these bytes are to be read and written.
  std::uint64_t copy(std::uint64_t offset, std::uint64_t limit) {
    if (!kernel_copies_)
      return 0;
    const image::Disk::Place place = disk_.place_at(offset, std::min(limit, longest_copy_), walk_);
    if (place.file == nullptr)
      return 0;
    throttle(place.length);
    // Two would spin for the lock of the one file that both write to. Short runs may each wait for
    // the disk, as may what is not announced: these are better off together.
    std::unique_lock alone(copying_, std::defer_lock);
    if (place.length >= kLongRun && is_copied_through_page_cache(*place.file))
      alone.lock();
    if (!writer_->copy(*place.file, raw(place.host_offset), place.length, offset)) {
      kernel_copies_ = false;
      booked_ += place.length;
      return 0;
    }
    counters_.read += place.length;
    counters_.written += place.length;
    ++counters_.requests;
    return place.length;
  }

  asio::awaitable<void> read_and_write(std::uint64_t offset, std::uint64_t length) {
    throttle(length);
    const auto data = std::span(buffer_).first(length);
    disk_.read(data, offset, walk_);
    counters_.read += length;
    ++counters_.requests;
    co_await writer_->write(data, offset);
    counters_.written += length;
  }

  /// Returns when that many bytes may move.
  void throttle(std::uint64_t bytes) {
    check_stop();
    const std::uint64_t booked = std::min(booked_, bytes);
    booked_ -= booked;
    bytes -= booked;
    const auto until = Clock::now() + work_.book(bytes);
    for (auto now = Clock::now(); now < until; now = Clock::now()) {
      std::this_thread::sleep_for(std::min<Clock::duration>(until - now, kLongestPause));
      check_stop();
    }
  }

  void check_stop() const {
    if (stop_.stop_requested())
      fail(ECANCELED, "interrupted");
  }

  asio::io_context& loop_;
  const image::Disk& disk_;
  image::Disk::Walk walk_;
  image::Disk::Walk announced_;  // is ahead of the other
  Work& work_;
  Counters& counters_;
  const std::uint64_t longest_copy_;
  std::mutex& copying_;
  std::uint64_t booked_ = 0;  // bytes that the kernel did not copy in the end
  std::stop_token stop_;
  std::unique_ptr<target::Writer> writer_;
  std::vector<std::byte> buffer_;
  bool kernel_copies_ = true;  // not known otherwise yet
};

}  // namespace

void run_direct(asio::io_context& loop, const image::Disk& disk, const image::KnownRuns& known,
                target::Target& target, const image::ExtentMap& map, const Settings& settings,
                Counters& counters, std::stop_source& stop) {
  counters.total += bytes_to_settle(map);
  Work work(map, {.request_size = kOperation, .zero_size = target.zero_size()}, false,
            settings.rate);
  const std::uint64_t useful = div_round_up(map.bytes(image::State::data), kOperation);
  const std::uint64_t threads = std::clamp<std::uint64_t>(
      useful, 1, std::min(settings.connections, target.maximum_writers()));
  const std::uint64_t longest_copy = settings.rate == 0 ? kOperation : kChunk;
  std::mutex copying;
  std::atomic<asio::io_context*> unused = &loop;
  const std::function<void()> work_along = [&] {
    ++counters.connections;
    asio::io_context own{1};
    asio::io_context* first = unused.exchange(nullptr);
    DirectWorker(first == nullptr ? own : *first, disk, known, target, work, counters, longest_copy,
                 copying, stop.get_token())
        .run();
  };
  target.lay_out(stop.get_token());
  run_threads(std::vector(threads, work_along), stop);
}

}  // namespace nbdelta::client::pull
