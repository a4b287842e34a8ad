#include "sim/process.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "sim/pipe.hpp"
#include "sim/unawaited.hpp"

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;

class Processes : public ::testing::Test {
 protected:
  /// Until nobody has anything to do any more.
  void run() {
    while (one_.run() || other_.run() || time_.advance()) {
    }
  }

  VirtualTime time_;
  Process one_{time_, "one"};
  Process other_{time_, "other"};
};

TEST_F(Processes, TimePassesExactlyAndAtOnce) {
  const Clock::Time start = time_.now();
  Clock::Time first;
  one_.spawn([](Clock& clock, Clock::Time& woke) -> asio::awaitable<void> {
    co_await clock.wait(24h);
    woke = clock.now();
  }(one_.clock(), first));
  run();
  EXPECT_EQ(first - start, 24h);
  EXPECT_TRUE(one_.ended());
}

TEST_F(Processes, AWaitCanBeCancelled) {
  const Clock::Time start = time_.now();
  bool in_time = true;
  one_.spawn([](Clock& clock, bool& result) -> asio::awaitable<void> {
    result = co_await client::either(clock.wait(5h), clock.wait(1s));
  }(one_.clock(), in_time));
  run();
  EXPECT_FALSE(in_time);
  EXPECT_EQ(time_.now() - start, 1s);
}

template <class Exception>
asio::awaitable<void> leave_with(Clock& clock, Exception exception) {
  co_await clock.wait(1s);
  throw exception;
}

/// Nobody awaits the coroutine: whoever runs the process has its exception, but for a kill's.
TEST_F(Processes, NoExceptionIsLost) {
  asio::co_spawn(one_.executor(), leave_with(one_.clock(), Killed()), kUnawaited);
  run();
  asio::co_spawn(one_.executor(), leave_with(one_.clock(), std::logic_error("odd")), kUnawaited);
  EXPECT_THROW(run(), std::logic_error);

  other_.spawn(leave_with(other_.clock(), Killed()));
  run();
  EXPECT_FALSE(other_.failure());
  other_.spawn(leave_with(other_.clock(), std::logic_error("odd")));
  run();
  EXPECT_TRUE(other_.failure());
}

TEST_F(Processes, OneThatIsBusyIsLateAndTheOthersAreNot) {
  const Clock::Time start = time_.now();
  Clock::Time other_woke;
  Clock::Time arrived;
  Clock::Time one_woke;
  auto [ours, theirs] = make_pipe(one_, other_, "the other", 2s);
  other_.spawn([](Clock& clock, Clock::Time& woke) -> asio::awaitable<void> {
    co_await clock.wait(1s);
    woke = clock.now();
  }(other_.clock(), other_woke));
  other_.spawn([](Clock& clock, std::unique_ptr<client::qmp::Channel> channel,
                  Clock::Time& time) -> asio::awaitable<void> {
    EXPECT_EQ(co_await channel->receive(), "before");
    EXPECT_EQ(co_await channel->receive(), "after");
    time = clock.now();
  }(other_.clock(), std::move(theirs), arrived));
  one_.spawn([](Process& self, std::unique_ptr<client::qmp::Channel> channel,
                Clock::Time& woke) -> asio::awaitable<void> {
    co_await channel->send("before");
    self.spend(10s);
    self.spend(5s);
    co_await channel->send("after");
    co_await self.clock().wait(1s);
    woke = self.clock().now();
  }(one_, std::move(ours), one_woke));
  run();
  EXPECT_EQ(other_woke - start, 1s);
  EXPECT_EQ(arrived - start, 17s);
  EXPECT_EQ(one_woke - start, 16s);
}

struct Witness {
  explicit Witness(int& count) : destroyed(&count) {}
  Witness(const Witness&) = delete;
  Witness& operator=(const Witness&) = delete;
  ~Witness() { ++*destroyed; }
  int* destroyed;
};

TEST_F(Processes, AKilledOneDoesNotGoOnAndFreesWhatItHad) {
  int destroyed = 0;
  bool went_on = false;
  one_.spawn([](Clock& clock, int& count, bool& after) -> asio::awaitable<void> {
    const Witness witness(count);
    co_await clock.wait(1s);
    after = true;
  }(one_.clock(), destroyed, went_on));
  one_.run();
  EXPECT_EQ(destroyed, 0);
  one_.kill();
  EXPECT_EQ(destroyed, 1);
  run();
  EXPECT_FALSE(went_on);
  EXPECT_FALSE(one_.alive());
}

TEST_F(Processes, WhatWasSentBeforeADeathArrives) {
  auto [mine, theirs] = make_pipe(one_, other_, "the other");
  std::string received;
  bool lost = false;
  one_.spawn(
      [](std::unique_ptr<client::qmp::Channel> channel, Clock& clock) -> asio::awaitable<void> {
        co_await channel->send("hello");
        co_await clock.wait(24h);
      }(std::move(mine), one_.clock()));
  one_.run();
  one_.kill();
  other_.spawn([](std::unique_ptr<client::qmp::Channel> channel, std::string& text,
                  bool& closed) -> asio::awaitable<void> {
    text = co_await channel->receive();
    try {
      co_await channel->receive();
    } catch (const client::qmp::ChannelLost&) {
      closed = true;
    }
  }(std::move(theirs), received, lost));
  run();
  EXPECT_EQ(received, "hello");
  EXPECT_TRUE(lost);
}

}  // namespace
}  // namespace nbdelta::sim
