// SIGINT, SIGTERM and SIGHUP: a second, a clean place, a message, an exit status.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "client/interruptible.hpp"
#include "tests/client/client_run.hpp"
#include "tests/client/scripted_server.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

class Interruption : public ::testing::Test {
 protected:
  /// Starts a pull, interrupts it once it has begun, and checks that it ends within a second.
  Outcome interrupt(const Command& arguments, int signal) {
    Command command = nbdelta_command({"pull"});
    command.insert(command.end(), arguments.begin(), arguments.end());
    Background client(command);
    std::this_thread::sleep_for(milliseconds(700));
    EXPECT_TRUE(client.running()) << client.err();
    client.signal(signal);
    const auto start = steady_clock::now();
    const auto outcome = client.wait(milliseconds(10'000));
    EXPECT_LT(steady_clock::now() - start, milliseconds(1000));
    return outcome.value_or(Outcome{});
  }

  TempFolder folder_;
};

TEST_F(Interruption, RemovesTheNewFile) {
  const NbdServer server = NbdServer::nbdkit("pattern", {"1G"}, {"--filter=noextents"});
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const Outcome outcome =
        interrupt({server.uri(), folder_ / "disk.raw", "--rate", "10M"}, signal);
    EXPECT_EQ(outcome.status, 128 + signal);
    EXPECT_NE(outcome.err.find("interrupted; "), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("disk.raw.partial was removed"), std::string::npos) << outcome.err;
    EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  }
}

TEST_F(Interruption, IsAnObjectToo) {
  const NbdServer server = NbdServer::nbdkit("pattern", {"1G"}, {"--filter=noextents"});
  const Outcome outcome =
      interrupt({server.uri(), folder_ / "disk.raw", "--rate", "10M", "--json"}, SIGTERM);
  const boost::json::value object = boost::json::parse(outcome.out);
  EXPECT_EQ(object.at("result").as_string(), "interrupted");
  EXPECT_NE(outcome.err.find(object.at("error").as_string().c_str()), std::string::npos)
      << outcome.out << outcome.err;
}

TEST_F(Interruption, LeavesTheOldFileUnderForce) {
  const NbdServer server = NbdServer::nbdkit("pattern", {"1G"}, {"--filter=noextents"});
  run_ok({"sh", "-c", "echo old > " + folder_ / "disk.raw"});
  interrupt({server.uri(), folder_ / "disk.raw", "--rate", "10M", "--force"}, SIGTERM);
  EXPECT_EQ(run_ok({"cat", folder_ / "disk.raw"}), "old\n");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "disk.raw.partial"));
}

TEST_F(Interruption, MarksWhatIsAppliedInPart) {
  const NbdServer server = NbdServer::nbdkit("pattern", {"1G"}, {"--filter=noextents"});
  run_ok({"truncate", "-s", "1G", folder_ / "disk.raw"});
  const Outcome outcome =
      interrupt({server.uri(), folder_ / "disk.raw", "--rate", "10M", "--apply"}, SIGTERM);
  EXPECT_EQ(outcome.status, 128 + SIGTERM);
  EXPECT_NE(outcome.err.find("only partly written"), std::string::npos) << outcome.err;
  EXPECT_EQ(run_ok({"cat", folder_ / "disk.raw.nbdelta-unfinished"}), server.uri() + "\n");
}

TEST_F(Interruption, WorksWhileTheServerIsSilent) {
  ScriptedServer::Script script;
  script.on_request = [](auto&, const ScriptedServer::Request& request) {
    return request.type == ScriptedServer::Type::read ? ScriptedServer::Next::handled
                                                      : ScriptedServer::Next::usual;
  };
  const ScriptedServer server(script);
  const Outcome outcome = interrupt({server.uri(), folder_ / "disk.raw"}, SIGINT);
  EXPECT_EQ(outcome.status, 130);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(Interruption, WorksWhileConnecting) {
  ScriptedServer::Script script;
  script.mute = [](unsigned) { return true; };
  const ScriptedServer server(script);
  EXPECT_EQ(interrupt({server.uri(), folder_ / "disk.raw"}, SIGINT).status, 130);
}

TEST_F(Interruption, WorksBetweenAttempts) {
  ScriptedServer::Script script;
  script.on_request = [](auto&, const ScriptedServer::Request&) {
    return ScriptedServer::Next::close;
  };
  const ScriptedServer server(script);
  EXPECT_EQ(interrupt({server.uri(), folder_ / "disk.raw", "--retries", "1000"}, SIGINT).status,
            130);
}

TEST_F(Interruption, WorksWhileTheTargetServerIsSilent) {
  ScriptedServer::Script target;
  target.on_request = [](auto&, const ScriptedServer::Request& request) {
    return request.type == ScriptedServer::Type::write ? ScriptedServer::Next::handled
                                                       : ScriptedServer::Next::usual;
  };
  target.read_only = false;
  const ScriptedServer to(target);
  const ScriptedServer from({});
  const Outcome outcome = interrupt({from.uri(), to.uri()}, SIGINT);
  EXPECT_EQ(outcome.status, 130);
  EXPECT_NE(outcome.err.find("only partly written"), std::string::npos) << outcome.err;
}

TEST_F(Interruption, WorksWhileThrottled) {
  const NbdServer server = NbdServer::nbdkit("pattern", {"1G"}, {"--filter=noextents"});
  const Outcome outcome = interrupt({server.uri(), folder_ / "disk.raw", "--rate", "16K"}, SIGINT);
  EXPECT_EQ(outcome.status, 130);
  EXPECT_NE(outcome.err.find("disk.raw.partial was removed"), std::string::npos) << outcome.err;
}

TEST(Interruptible, LeavesTheSignalMaskAsItWas) {
  const auto blocked = [](int signal) {
    sigset_t mask;
    ::pthread_sigmask(SIG_BLOCK, nullptr, &mask);
    return sigismember(&mask, signal) == 1;
  };
  ASSERT_FALSE(blocked(SIGTERM) || blocked(SIGINT));
  EXPECT_EQ(client::run_interruptibly({.job = [&](auto&) { EXPECT_TRUE(blocked(SIGTERM)); }}), 0);
  EXPECT_FALSE(blocked(SIGTERM) || blocked(SIGINT));
  EXPECT_THROW(client::run_interruptibly({.job = [](auto&) { fail(EIO, "test"); }}), Error);
  EXPECT_FALSE(blocked(SIGTERM) || blocked(SIGINT));
}

/// Does not end when it should, as a thread in the kernel on a disk that does not answer.
[[noreturn]] void run_stubborn_job(int signals, const std::function<void()>& abandon) {
  sigset_t terminate;
  sigemptyset(&terminate);
  sigaddset(&terminate, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &terminate, nullptr);  // in the sender too
  std::atomic<bool> started = false;
  std::jthread sender([&] {
    while (!started)
      std::this_thread::sleep_for(milliseconds(1));
    for (int i = 0; i < signals; ++i) {
      ::kill(::getpid(), SIGTERM);
      std::this_thread::sleep_for(milliseconds(100));  // or both would be one
    }
  });
  client::run_interruptibly({.job =
                                 [&](std::stop_source&) {
                                   started = true;
                                   std::this_thread::sleep_for(milliseconds(20'000));
                                 },
                             .abandon = abandon});
  std::_Exit(99);
}

class InterruptionDeathTest : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(InterruptionDeathTest, JobThatDoesNotEndIsLeft) {
  const auto start = steady_clock::now();
  EXPECT_EXIT(run_stubborn_job(1, [] { fmt::print(stderr, "abandoned\n"); }),
              ::testing::ExitedWithCode(143), "abandoned");
  EXPECT_LT(steady_clock::now() - start, milliseconds(15'000));
}

TEST_F(InterruptionDeathTest, FurtherSignalsSpareNothing) {
  EXPECT_EXIT(run_stubborn_job(3, [] { fmt::print(stderr, "abandoned\n"); }),
              ::testing::ExitedWithCode(143), "abandoned");
}

}  // namespace
}  // namespace nbdelta::testing
