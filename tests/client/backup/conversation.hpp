#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "client/clock.hpp"
#include "client/qmp/socket_channel.hpp"
#include "qapi/framing.hpp"
#include "qapi/message.hpp"

namespace nbdelta::client {

/// Time that passes only when nobody has anything to do: seconds cost nothing, and are exact.
class VirtualClock final : public Clock {
 public:
  Time now() const override { return now_; }

  asio::awaitable<void> pass_until(Time time) override {
    const auto executor = co_await asio::this_coro::executor;
    Waiter waiter(*this, executor, time);
    co_await waiter.timer.async_wait(asio::as_tuple(asio::use_awaitable));
  }

  /// Time passes while nobody gets a processor.
  void leap(Duration duration) { now_ += duration; }

  /// Lets time pass until somebody wakes up; false where nobody waits.
  bool advance() {
    const Waiter* first = nullptr;
    for (const Waiter* waiter : waiters_)
      if (!waiter->due && (first == nullptr || waiter->time < first->time))
        first = waiter;
    if (first == nullptr)
      return false;
    now_ = std::max(now_, first->time);
    for (Waiter* waiter : waiters_)
      if (!waiter->due && waiter->time <= now_) {
        waiter->due = true;
        waiter->timer.cancel();
      }
    return true;
  }

 private:
  struct Waiter {
    Waiter(VirtualClock& owner, const asio::any_io_executor& executor, Time until)
        : clock(owner), time(until), timer(executor, std::chrono::steady_clock::time_point::max()) {
      if (time <= clock.now_) {
        due = true;
        timer.expires_at(std::chrono::steady_clock::time_point::min());
      }
      clock.waiters_.insert(this);
    }
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    ~Waiter() { clock.waiters_.erase(this); }

    VirtualClock& clock;
    Time time;
    asio::steady_timer timer;
    bool due = false;
  };

  Time now_ = Time(std::chrono::hours(1));
  std::set<Waiter*> waiters_;
};

/// One end of a channel, for scripts.
class Peer {
 public:
  explicit Peer(std::unique_ptr<qmp::Channel> channel) : channel_(std::move(channel)) {}

  asio::awaitable<void> send(std::string bytes) { return channel_->send(std::move(bytes)); }

  /// All bytes so far.
  const std::string& received() const { return received_; }

  /// The next line as it came, without its end. Throws ChannelLost.
  asio::awaitable<std::string> line() {
    while (true) {
      if (auto line = framer_.next())
        co_return std::move(*line);
      const std::string bytes = co_await channel_->receive();
      received_ += bytes;
      framer_.feed(bytes);
    }
  }
  /// The next command; a delimiter before it is passed over.
  asio::awaitable<qapi::Command> command() {
    std::string text = co_await line();
    while (text.starts_with(qapi::kDelimiter))
      text.erase(0, 1);
    co_return qapi::parse_command(text);
  }
  /// Takes a command and answers it with `value`, a piece of JSON. Returns its name.
  asio::awaitable<std::string> answer(std::string value) {
    const qapi::Command command = co_await this->command();
    co_await reply(command, std::move(value));
    co_return command.name;
  }
  /// `value` is a piece of JSON.
  asio::awaitable<void> reply(const qapi::Command& command, std::string value) {
    const std::string id =
        command.id ? ", \"id\": " + qapi::json::serialize(*command.id) : std::string();
    return send("{\"return\": " + value + id + "}\r\n");
  }

 private:
  std::unique_ptr<qmp::Channel> channel_;
  qapi::Framer framer_;
  std::string received_;
};

/// Coroutines that talk to each other over sockets, in virtual time.
class Conversation : public ::testing::Test {
 protected:
  using Ends = std::pair<std::unique_ptr<qmp::Channel>, std::unique_ptr<qmp::Channel>>;

  /// Both ends of a new connection; `name` is what the first calls the other.
  Ends connection(const std::string& name) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
      fail_errno("socketpair");
    return {qmp::adopt_socket(loop_.get_executor(), FileDescriptor(ends[0]), name),
            qmp::adopt_socket(loop_.get_executor(), FileDescriptor(ends[1]), "the test")};
  }

  /// Runs beside the others; run() waits for it, and an exception that leaves it fails the test.
  void spawn(std::function<asio::awaitable<void>()> talk) {
    ++running_;
    asio::co_spawn(loop_, std::move(talk), [this](const std::exception_ptr& error) {
      --running_;
      try {
        if (error)
          std::rethrow_exception(error);
      } catch (const std::exception& thrown) {
        ADD_FAILURE() << "unexpected: " << thrown.what();
      }
    });
  }
  /// The same, but nobody waits for it, and its connection may end as it likes.
  void spawn_server(std::function<asio::awaitable<void>()> talk) {
    asio::co_spawn(loop_, std::move(talk), [](const std::exception_ptr& error) {
      try {
        if (error)
          std::rethrow_exception(error);
      } catch (const qmp::ChannelLost&) {
      } catch (const std::exception& thrown) {
        ADD_FAILURE() << "unexpected: " << thrown.what();
      }
    });
  }

  void run() {
    const Clock::Time start = clock_.now();
    while (running_ != 0) {
      loop_.restart();
      if (loop_.poll() != 0)
        continue;
      if (!clock_.advance()) {
        ADD_FAILURE() << "everybody waits for somebody else";
        return;
      }
      if (clock_.now() - start > std::chrono::hours(1)) {
        ADD_FAILURE() << "it does not end";
        return;
      }
    }
  }

  VirtualClock clock_;
  asio::io_context loop_;  // its coroutines end before the clock

 private:
  int running_ = 0;
};

/// What a coroutine ends with: the message of an Expected, or why that is none.
template <class Expected>
asio::awaitable<std::string> error_of(std::function<asio::awaitable<void>()> talk) {
  try {
    co_await talk();
  } catch (const Expected& error) {
    co_return error.what();
  } catch (const Error& error) {
    co_return std::string("another error: ") + error.what();
  }
  co_return "no error";
}

#define EXPECT_IN(part, text) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << "it says: " << (text)

}  // namespace nbdelta::client
