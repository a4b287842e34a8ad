#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/clock.hpp"
#include "sim/event.hpp"
#include "sim/load.hpp"
#include "sim/page_cache.hpp"
#include "sim/random.hpp"
#include "sim/storage.hpp"
#include "sim/write_done.hpp"

namespace nbdelta::sim {

namespace asio = boost::asio;
using client::Clock;

/// The guest's disks, as its kernel has them: in granules, each of which is written as a whole.
class Disks {
 public:
  virtual ~Disks() = default;
  virtual std::size_t count() const = 0;
  virtual std::uint64_t granules(std::size_t disk) const = 0;
  virtual std::uint64_t granule_size(std::size_t disk) const = 0;  // bytes
  enum class Fill : std::uint8_t { data, zeros };
  /// `done` is called when the disk has it, at once or later; with an error where there is no
  /// space: the guest waits and tries again.
  virtual void write(std::size_t disk, std::uint64_t granule, Fill fill, WriteDone done) = 0;
  /// What was written before survives a crash of QEMU from here on; where every write does, there
  /// is nothing to do.
  virtual void flush(std::size_t /*disk*/) {}
};

/// What the guest's kernel does with what its programs write.
struct PageCacheSetup {
  std::uint64_t dirty_limit = 50U << 20;               // bytes; programs wait beyond it
  std::uint64_t background = 25U << 20;                // writing back begins
  Clock::Duration expire = std::chrono::seconds(30);   // older pages are written back
  Clock::Duration interval = std::chrono::seconds(5);  // they are looked for
};

/// A load that runs on one of the disks.
struct DiskLoad {
  std::size_t disk = 0;
  LoadSetup load;
};

struct GuestSetup {
  std::vector<DiskLoad> loads;
  PageCacheSetup cache;
  StorageSetup storage;
  /// What freezing one file system takes beyond the writing; there is one on each disk.
  Clock::Duration freeze = std::chrono::milliseconds(5);
  double freeze_jitter = 0.2;                // see StorageSetup::jitter
  std::uint64_t most_requests = UINT64_MAX;  // of each program
};

/// A request that was done: for the report.
struct Completed {
  std::size_t disk = 0;
  Request::Kind kind = Request::Kind::write;
  Clock::Time sent;
  Clock::Duration latency{};
};

/// A guest that writes: programs, a page cache, a storage, and file systems that can be frozen. Its
/// coroutines run on `executor`, on whose clock the time passes, real or virtual. For one thread.
///
/// Invariants
/// 1. What a program wrote is in the page cache, on its way to the disk, or on the disk.
/// 2. While a disk is held, none of its pages is dirty once the freeze has ended, and no request
///    to it begins.
class Guest {
 public:
  Guest(asio::any_io_executor executor, Clock& clock, Disks& disks, GuestSetup setup,
        std::uint64_t seed);
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;
  ~Guest() { stop(); }

  /// The programs begin.
  void start();
  /// All of its coroutines end where they are, as by SIGKILL; those that wait for the clock do when
  /// their executor is gone, which must be before the object is. Not from inside of one of them.
  void stop();

  /// One file system after the other: its writers are held, its dirty pages written and flushed.
  asio::awaitable<void> freeze();
  /// Lets the writers go.
  void thaw();
  /// After an error: the write is tried again.
  void resume();

  /// For others who use it too.
  Storage& storage() { return storage_; }
  bool paused() const { return paused_; }
  std::uint64_t dirty_bytes() const { return cache_.dirty_bytes() + in_flight_bytes_; }
  std::uint64_t written_bytes() const { return written_; }  // to the disks

  /// The longest that any request has taken since the last reset; those that wait still count.
  Clock::Duration longest_stall() const;
  void reset_longest_stall();

  /// After each request of a program.
  std::function<void(const Completed&)> completed = [](const Completed&) {};
  /// A write was refused.
  std::function<void(const std::exception_ptr&)> failed = [](const std::exception_ptr&) {};

 private:
  struct Program {
    std::size_t disk = 0;
    bool direct = false;
    std::unique_ptr<Load> load;
    std::optional<Clock::Time> waits_since;
  };

  asio::awaitable<void> run(Program& program);
  asio::awaitable<void> carry_out(const Program& program, const Request& request);
  asio::awaitable<void> write_cached(std::size_t disk, Range range);
  asio::awaitable<void> write_direct(std::size_t disk, Range range);
  asio::awaitable<void> erase(std::size_t disk, Range range, Request::Kind kind);
  asio::awaitable<void> sync(std::size_t disk, Range range);
  asio::awaitable<void> until_released(std::size_t disk);
  bool is_in_flight(std::size_t disk, Range range) const;
  asio::awaitable<void> until_quiet(std::size_t disk, Range range);

  void start_writing_back();
  asio::awaitable<void> relieve_pressure();
  asio::awaitable<void> write_expired();
  /// Writes some of what is dirty and chosen; returns whether there was any.
  asio::awaitable<bool> write_back(std::size_t disk, Range range, Clock::Time dirty_before);
  asio::awaitable<void> write_all(std::size_t disk, Range range, Clock::Time dirty_before);
  asio::awaitable<void> put(std::size_t disk, Range range);
  void landed(std::size_t disk, Range range);
  asio::awaitable<void> put_granule(std::size_t disk, std::uint64_t granule, Disks::Fill fill);

  asio::any_io_executor executor_;
  Clock* clock_;
  Disks* disks_;
  GuestSetup setup_;
  Storage storage_;
  Random random_;
  PageCache cache_;
  Event changed_;  // of all that is waited for below
  std::vector<std::unique_ptr<Program>> programs_;
  std::vector<bool> held_;  // by a freeze
  bool paused_ = false;     // by an error
  bool relieving_ = false;
  bool expiring_ = false;
  std::vector<InFlight> in_flight_;
  std::uint64_t in_flight_bytes_ = 0;
  std::uint64_t written_ = 0;
  Clock::Duration longest_{};
  Clock::Time longest_since_{};
};

}  // namespace nbdelta::sim
