#include "sim/guest.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "sim/process.hpp"

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;
using Kind = Request::Kind;

constexpr std::uint64_t kGranule = 65536;

class RecordingDisks final : public Disks {
 public:
  explicit RecordingDisks(Clock& clock, std::size_t disks = 1) : clock_(&clock), disks_(disks) {}
  std::size_t count() const override { return disks_; }
  std::uint64_t granules(std::size_t /*disk*/) const override { return 1024; }
  std::uint64_t granule_size(std::size_t /*disk*/) const override { return kGranule; }
  void write(std::size_t disk, std::uint64_t granule, Fill fill, WriteDone done) override {
    if (full) {
      done(std::make_exception_ptr(Error(ENOSPC, "No space left on device")));
      return;
    }
    if (holds_back) {
      kept.emplace_back([=, this] { write(disk, granule, fill, done); });
      return;
    }
    held[{disk, granule}] = fill == Fill::data;
    ++(fill == Fill::data ? writes : zeros);
    last_write = clock_->now();
    done(nullptr);
  }

  std::map<std::pair<std::size_t, std::uint64_t>, bool> held;  // true: data
  std::uint64_t writes = 0;
  std::uint64_t zeros = 0;
  Clock::Time last_write;
  bool full = false;
  bool holds_back = false;
  std::vector<std::function<void()>> kept;

 private:
  Clock* clock_;
  std::size_t disks_;
};

/// Storage whose times are exact: 64 MiB/s and 1 ms a request, one at a time, 10 ms a flush.
GuestSetup exact() {
  GuestSetup setup;
  setup.storage = {
      .throughput = 64U << 20, .latency = 1ms, .flush = 10ms, .parallel = 1, .jitter = 0};
  setup.freeze = 5ms;
  setup.freeze_jitter = 0;
  return setup;
}

DiskLoad load_of(Pattern pattern, std::optional<std::uint64_t> rate = {},
                 std::uint64_t request = kGranule) {
  DiskLoad load;
  load.load.pattern = pattern;
  load.load.rate = rate;
  load.load.request = request;
  return load;
}

class FakeGuest : public ::testing::Test {
 protected:
  void make(GuestSetup setup, std::size_t disks = 1, std::uint64_t seed = 1) {
    end();
    completed_.clear();
    process_ = std::make_unique<Process>(time_, "guest");
    disks_.emplace(process_->clock(), disks);
    guest_.emplace(process_->executor(), process_->clock(), *disks_, std::move(setup), seed);
    guest_->completed = [this](const Completed& each) { completed_.push_back(each); };
    guest_->start();
  }
  void end() {
    if (!guest_)
      return;
    guest_->stop();
    process_->kill();
    guest_.reset();
  }
  void TearDown() override { end(); }

  void pass(Clock::Duration duration) {
    const Clock::Time end = time_.now() + duration;
    bool there = false;
    process_->spawn([](Clock& clock, Clock::Time until, bool& reached) -> asio::awaitable<void> {
      co_await clock.wait_until(until);
      reached = true;
    }(process_->clock(), end, there));
    while (!there)
      if (!process_->run())
        time_.advance();  // the wait above is there
  }

  /// How long it took; nothing where it has not ended within an hour.
  std::optional<Clock::Duration> freeze() {
    const auto end = std::make_shared<std::optional<Clock::Time>>();
    const Clock::Time start = time_.now();
    process_->spawn([](Guest& guest, Clock& clock, auto ended) -> asio::awaitable<void> {
      co_await guest.freeze();
      *ended = clock.now();
    }(*guest_, process_->clock(), end));
    while (!*end && time_.now() < start + 1h)
      if (!process_->run() && !time_.advance())
        break;
    if (!*end)
      return std::nullopt;
    return **end - start;
  }

  VirtualTime time_;
  std::unique_ptr<Process> process_;
  std::optional<RecordingDisks> disks_;
  std::optional<Guest> guest_;
  std::vector<Completed> completed_;
};

TEST_F(FakeGuest, AWriteIsInTheCacheUntilItIsOldEnough) {
  GuestSetup setup = exact();
  setup.loads = {load_of(Pattern::sequential)};
  setup.most_requests = 3;
  make(setup);
  pass(29s);
  EXPECT_EQ(completed_.size(), 3U);
  EXPECT_EQ(completed_[0].latency, 0s);
  EXPECT_EQ(disks_->writes, 0U);
  EXPECT_EQ(guest_->dirty_bytes(), 3 * kGranule);
  pass(7s);  // the next look after 30 s
  EXPECT_EQ(disks_->writes, 3U);
  EXPECT_EQ(guest_->dirty_bytes(), 0U);
  EXPECT_EQ(guest_->written_bytes(), 3 * kGranule);
}

TEST_F(FakeGuest, TheCacheHasALimitAndWritersWait) {
  GuestSetup setup = exact();
  setup.cache.dirty_limit = 4 << 20;
  setup.cache.background = 2 << 20;
  setup.loads = {load_of(Pattern::sequential)};  // as fast as it goes
  make(setup);
  for (int i = 0; i < 50; ++i) {
    pass(100ms);
    EXPECT_LE(guest_->dirty_bytes(), (4U << 20) + kGranule);
  }
  // 64 MiB/s, and 1 ms for each MiB.
  EXPECT_NEAR(static_cast<double>(guest_->written_bytes()) / (1 << 20) / 5, 1000 / (15.625 + 1), 2);
  EXPECT_GT(guest_->longest_stall(), 10ms);
}

/// What is dirty below the background threshold stays; above it, it is written until it is below.
TEST_F(FakeGuest, PressureBeginsAtTheBackgroundThreshold) {
  GuestSetup setup = exact();
  setup.cache.background = 2 << 20;
  setup.cache.expire = 24h;
  setup.loads = {load_of(Pattern::sequential, 1 << 20)};
  make(setup);
  pass(1s);
  EXPECT_EQ(disks_->writes, 0U);
  pass(60s);
  EXPECT_GT(disks_->writes, 16U * 50);
  EXPECT_LE(guest_->dirty_bytes(), 3U << 20);
}

TEST_F(FakeGuest, ASyncReturnsWhenItsDataIsOnTheDisk) {
  GuestSetup setup = exact();
  DiskLoad load = load_of(Pattern::sequential);
  load.load.sync_every = 4;
  setup.loads = {load};
  setup.most_requests = 5;
  make(setup);
  guest_->completed = [this](const Completed& each) {
    completed_.push_back(each);
    if (each.kind == Kind::sync) {
      EXPECT_EQ(disks_->writes, 4U);
      EXPECT_EQ(guest_->dirty_bytes(), 0U);
    }
  };
  pass(1s);
  ASSERT_EQ(completed_.size(), 5U);
  // 4 x 64 KiB as one request of 1 ms, at 64 MiB/s; and the flush.
  EXPECT_EQ(completed_[4].latency, 1ms + 4 * 976562ns + 2ns + 10ms);
  EXPECT_EQ(guest_->longest_stall(), completed_[4].latency);
}

TEST_F(FakeGuest, ADirectWriteWaitsForTheStorage) {
  GuestSetup setup = exact();
  DiskLoad load = load_of(Pattern::sequential);
  load.load.direct = true;
  setup.loads = {load};
  setup.most_requests = 1;
  make(setup);
  pass(1s);
  EXPECT_EQ(completed_.at(0).latency, 1ms + 976562ns);
  EXPECT_EQ(disks_->writes, 1U);
}

TEST_F(FakeGuest, WholeGranulesAreZeroedAndPartsOfThemWritten) {
  for (const bool discards : {false, true}) {
    GuestSetup setup = exact();
    DiskLoad load = load_of(Pattern::sequential, {}, kGranule + kGranule / 2);
    (discards ? load.load.discard_share : load.load.zero_share) = 1;
    setup.loads = {load};
    setup.most_requests = 2;  // granules 0 and half of 1; the other half of 1, and 2
    make(setup);
    pass(1s);
    EXPECT_EQ(disks_->zeros, 2U);
    EXPECT_EQ(disks_->writes, discards ? 0U : 2U);
  }
}

/// What was written before it was zeroed does not come after it.
TEST_F(FakeGuest, AnErasureIsNotUndoneByWhatWasDirty) {
  GuestSetup setup = exact();
  DiskLoad load = load_of(Pattern::sequential);
  load.load.area = kGranule;
  load.load.zero_share = 0.5;
  setup.loads = {load};
  setup.most_requests = 40;
  make(setup);
  pass(2min);
  EXPECT_GT(disks_->zeros, 5U);
  const bool last_is_data = completed_.back().kind == Kind::write;
  EXPECT_EQ((disks_->held.at({0, 0})), last_is_data);
  EXPECT_EQ(guest_->dirty_bytes(), 0U);
}

/// 16 MiB at 64 MiB/s are 250 ms, in requests of 1 MiB and 1 ms; a flush; the freeze itself.
TEST_F(FakeGuest, TheTimeToFreezeFollowsFromWhatIsDirty) {
  for (const std::uint64_t megabytes : {0U, 4U, 16U}) {
    GuestSetup setup = exact();
    setup.loads = {load_of(Pattern::sequential)};
    setup.most_requests = megabytes * 16;
    make(setup);
    pass(1s);
    EXPECT_EQ(guest_->dirty_bytes(), megabytes << 20);
    const auto time = freeze();
    ASSERT_TRUE(time);
    EXPECT_NEAR(std::chrono::duration<double>(*time).count(),
                static_cast<double>(megabytes) * (1 / 64.0 + 0.001) + 0.010 + 0.005, 1e-6);
    EXPECT_EQ(disks_->writes, megabytes * 16);
  }
}

TEST_F(FakeGuest, FrozenNothingIsWrittenAndThawedItGoesOn) {
  GuestSetup setup = exact();
  setup.loads = {load_of(Pattern::uniform, 1 << 20), load_of(Pattern::database),
                 load_of(Pattern::sequential)};
  setup.loads[2].load.direct = true;
  setup.loads[2].load.zero_share = 0.3;
  make(setup);
  pass(3s);
  ASSERT_TRUE(freeze());
  const Clock::Time frozen = time_.now();
  const std::uint64_t writes = disks_->writes + disks_->zeros;
  guest_->reset_longest_stall();
  pass(2min);
  EXPECT_EQ(disks_->writes + disks_->zeros, writes);
  EXPECT_LE(disks_->last_write, frozen);
  EXPECT_EQ(guest_->dirty_bytes(), 0U);
  EXPECT_GE(guest_->longest_stall(), 119s);
  EXPECT_LE(guest_->longest_stall(), 120s);
  guest_->thaw();
  pass(1s);
  EXPECT_GT(disks_->writes + disks_->zeros, writes);
  EXPECT_LE(guest_->longest_stall(), 121s);
}

/// One file system after the other: a disk that is not frozen yet goes on meanwhile.
TEST_F(FakeGuest, EachDiskHasItsFileSystem) {
  GuestSetup setup = exact();
  make(setup, 4);
  EXPECT_EQ(freeze(), 4 * (10ms + 5ms));
}

TEST_F(FakeGuest, WithoutSpaceItWaitsAndTriesAgain) {
  GuestSetup setup = exact();
  DiskLoad load = load_of(Pattern::sequential);
  load.load.sync_every = 1;
  setup.loads = {load};
  setup.most_requests = 2;
  make(setup);
  int failures = 0;
  guest_->failed = [&](const std::exception_ptr& error) {
    try {
      std::rethrow_exception(error);
    } catch (const Error& full) {
      EXPECT_EQ(full.error_number(), ENOSPC);
    }
    ++failures;
  };
  disks_->full = true;
  pass(10s);
  EXPECT_TRUE(guest_->paused());
  EXPECT_EQ(failures, 1);
  EXPECT_EQ(completed_.size(), 1U);
  guest_->resume();
  pass(1s);
  EXPECT_EQ(failures, 2);
  disks_->full = false;
  guest_->resume();
  pass(1s);
  EXPECT_EQ(completed_.size(), 2U);
  EXPECT_EQ(disks_->writes, 1U);
}

/// As QEMU does while a commit is pending: a freeze waits for what is on its way.
TEST_F(FakeGuest, WhatTheDiskHoldsBackIsWaitedFor) {
  GuestSetup setup = exact();
  DiskLoad load = load_of(Pattern::sequential);
  load.load.direct = true;
  setup.loads = {load};
  setup.most_requests = 2;
  make(setup);
  disks_->holds_back = true;
  pass(10s);
  EXPECT_EQ(completed_.size(), 0U);
  EXPECT_GT(guest_->longest_stall(), 9s);
  EXPECT_FALSE(freeze());
  disks_->holds_back = false;
  for (const auto& write : disks_->kept)
    write();
  pass(1s);
  EXPECT_EQ(completed_.size(), 1U);  // it is frozen now
  guest_->thaw();
  pass(1s);
  EXPECT_EQ(completed_.size(), 2U);
}

TEST_F(FakeGuest, ASeedAlwaysGoesTheSameWay) {
  std::vector<std::uint64_t> written;
  for (const std::uint64_t seed : {5U, 5U, 6U}) {
    GuestSetup setup;
    setup.loads = {load_of(Pattern::database, 4 << 20), load_of(Pattern::zipf, 1 << 20)};
    make(setup, 1, seed);
    pass(20s);
    ASSERT_TRUE(freeze());
    written.push_back(guest_->written_bytes());
  }
  EXPECT_EQ(written[0], written[1]);
  EXPECT_NE(written[0], written[2]);
}

TEST(StorageModel, RequestsOverlapInTheirLatencyAlone) {
  const StorageSetup setup{
      .throughput = 1U << 20, .latency = 8ms, .flush = 3ms, .parallel = 4, .jitter = 0};
  Storage storage(setup, 1);
  const Clock::Time start{1h};
  EXPECT_EQ(storage.write(start, 1 << 20), start + 1s + 8ms);
  EXPECT_EQ(storage.write(start, 1 << 20), start + 2s + 10ms);
  EXPECT_EQ(storage.flush(start), start + 2s + 4ms + 3ms);
  EXPECT_EQ(storage.stream(start, 1 << 20), start + 3s + 6ms + 3ms);
  EXPECT_EQ(storage.write(start + 1h, 0), start + 1h + 8ms);
}

TEST(StorageModel, TheMedianOfJitterIsOne) {
  Random random(1);
  std::vector<double> draws(20'001);
  for (double& draw : draws)
    draw = draw_jitter(random, 0.5);
  std::sort(draws.begin(), draws.end());
  EXPECT_NEAR(draws[10'000], 1, 0.02);
  EXPECT_NEAR(draws[16'827], std::exp(0.5), 0.05);  // one sigma
}

}  // namespace
}  // namespace nbdelta::sim
