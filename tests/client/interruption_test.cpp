// SIGINT and SIGTERM: a second, a clean place, a message, an exit status.

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <string>
#include <thread>

#include "base/arithmetic.hpp"
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
  for (const int signal : {SIGINT, SIGTERM}) {
    const Outcome outcome =
        interrupt({server.uri(), folder_ / "disk.raw", "--rate", "10M"}, signal);
    EXPECT_EQ(outcome.status, 128 + signal);
    EXPECT_NE(outcome.err.find("interrupted; "), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("disk.raw.partial was removed"), std::string::npos) << outcome.err;
    EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  }
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

}  // namespace
}  // namespace nbdelta::testing
