#include <fmt/format.h>
#include <signal.h>

#include <chrono>
#include <iostream>
#include <thread>

#include "tests/client/session/fake_agent.hpp"
#include "tests/client/session/session_test.hpp"

/// Backups of real QEMU with an agent that misbehaves: the thaw is sent in every case.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;

class AgentTest : public ::testing::Test {
 protected:
  void start_agent(const AgentFaults& faults) { agent_.emplace(address(), faults); }
  std::string address() const { return machine_.folder() + "/agent"; }
  Command command(const Command& more) {
    Command words = points_.command("backup", {"--agent", address(), "--json"});
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  /// It worked all the same, without a freeze.
  json::value expect_crash_consistent(const Outcome& outcome, const std::string& why) {
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(why));
    const json::value result = json::parse(outcome.out.empty() ? "{}" : outcome.out);
    EXPECT_EQ(result.at("consistency").as_string(), "crash");
    EXPECT_FALSE(agent_->frozen());
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    return result;
  }

  Machine machine_{{{.name = "vda"}}};
  Points points_{machine_};
  std::optional<FakeAgent> agent_;
};

TEST_F(AgentTest, FreezesAndThaws) {
  start_agent({});
  const json::value result = json::parse(run_ok(command({"--presync"})));
  EXPECT_EQ(result.at("consistency").as_string(), "application");
  EXPECT_EQ(result.at("frozen-file-systems").as_int64(), 2);
  EXPECT_EQ(result.at("presync").as_string(), "done");
  EXPECT_FALSE(agent_->frozen());
  EXPECT_EQ(agent_->count("guest-fsfreeze-freeze"), 1);
  EXPECT_EQ(agent_->count("guest-fsfreeze-thaw"), 1);
  const json::value& window = result.at("window");
  const auto at = [&](const char* name) { return window.at(name).as_int64(); };
  EXPECT_LE(at("freeze-sent-us"), at("freeze-answered-us"));
  EXPECT_LE(at("freeze-answered-us"), at("switch-sent-us"));
  EXPECT_LE(at("switch-sent-us"), at("switch-answered-us"));
  EXPECT_LE(at("switch-answered-us"), at("thaw-sent-us"));
  EXPECT_LE(at("thaw-sent-us"), at("thaw-answered-us"));
}

TEST_F(AgentTest, FreezesTheMountpointsThatWereNamed) {
  start_agent({});
  const json::value result =
      json::parse(run_ok(command({"--mountpoint", "/mnt", "--mountpoint", "/srv"})));
  EXPECT_EQ(result.at("consistency").as_string(), "crash");
  EXPECT_EQ(result.at("mountpoints").as_array().size(), 2U);
  EXPECT_EQ(agent_->count("guest-fsfreeze-freeze-list"), 1);
}

TEST_F(AgentTest, SlowFreezeIsWaitedFor) {
  start_agent({.freeze_takes = 7s});
  const json::value result = json::parse(run_ok(command({})));
  EXPECT_EQ(result.at("consistency").as_string(), "application");
  EXPECT_FALSE(agent_->frozen());
}

TEST_F(AgentTest, FreezeThatIsNotAnsweredIsThawedAtTheDeadline) {
  start_agent({.freeze_never_answers = true});
  expect_crash_consistent(run(command({"--freeze-deadline", "1"})), "was not answered in time");
  EXPECT_LT(agent_->frozen_for().count(), 2.0);
  EXPECT_GE(agent_->count("guest-fsfreeze-thaw"), 1);
}

TEST_F(AgentTest, FreezeSlowerThanTheDeadline) {
  start_agent({.freeze_takes = 3s});
  expect_crash_consistent(run(command({"--freeze-deadline", "1"})), "was not answered in time");
  EXPECT_GE(agent_->count("guest-fsfreeze-thaw"), 1);
}

TEST_F(AgentTest, FreezeThatFailsAfterFreezing) {
  start_agent({.freeze_fails_after = true});
  expect_crash_consistent(run(command({})), "failed to freeze /mnt");
  EXPECT_GE(agent_->count("guest-fsfreeze-thaw"), 1);
}

TEST_F(AgentTest, AgentThatDiesInTheFreeze) {
  start_agent({.dies_in_freeze = true});
  expect_crash_consistent(run(command({})), "has closed the connection");
  EXPECT_GE(agent_->count("guest-fsfreeze-thaw"), 1);
}

TEST_F(AgentTest, AgentsThatCannotBeUsed) {
  const struct {
    AgentFaults faults;
    std::string message;
  } rows[] = {
      {{.silent = true}, "does not answer guest-sync-delimited"},
      {{.garbage = true}, "does not answer guest-sync-delimited"},
      {{.frozen_already = true}, "the guest is frozen already"},
  };
  for (const auto& row : rows) {
    agent_.reset();
    std::filesystem::remove(address());
    start_agent(row.faults);
    const Outcome outcome = run(command({}));
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(row.message));
    EXPECT_EQ(agent_->count("guest-fsfreeze-freeze"), 0);
    const Outcome required = run(command({"--quiesce", "require"}));
    EXPECT_EQ(required.status, 3);
    EXPECT_THAT(required.err, HasSubstr(row.message));
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
  }
}

TEST_F(AgentTest, NoAgentThere) {
  const Outcome outcome = run(command({}));
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("No such file or directory"));
  EXPECT_EQ(run(command({"--quiesce", "require"})).status, 3);
}

TEST_F(AgentTest, RequiredFreezeThatFailsLeavesNothing) {
  start_agent({.freeze_fails_after = true});
  points_.backup();
  const Outcome outcome = run(command({"--quiesce", "require"}));
  EXPECT_EQ(outcome.status, 3) << outcome.err;
  EXPECT_FALSE(agent_->frozen());
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  EXPECT_EQ(type_of(points_.backup()), "incremental");
}

/// Of nbdelta, of its guardian, and of both, while the guest is frozen.
TEST_F(AgentTest, DeathInTheFreeze) {
  points_.backup();
  const auto processes = [](const std::string& what) {
    std::vector<pid_t> pids;
    const Outcome found = run({"pgrep", "-f", what});
    std::istringstream lines(found.out);
    for (pid_t pid = 0; lines >> pid;)
      pids.push_back(pid);
    return pids;
  };
  for (const std::string victims : {"nbdelta", "guardian", "both"}) {
    agent_.reset();
    std::filesystem::remove(address());
    start_agent({.freeze_takes = 700ms});
    machine_.write(machine_.disks()[0], "write -P 7 0 1M");
    Background nbdelta(command({}));
    while (!agent_->frozen())
      std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(100ms);
    const std::vector<pid_t> guardians = processes("guardian " + address());
    ASSERT_EQ(guardians.size(), 1U);
    if (victims != "nbdelta")
      ::kill(guardians[0], SIGKILL);
    if (victims != "guardian")
      nbdelta.signal(SIGKILL);
    const auto outcome = nbdelta.wait(60s);
    ASSERT_TRUE(outcome);
    if (victims == "both") {
      run_ok(points_.command("recover", {"--agent", address()}));
    } else {
      for (int i = 0; i < 500 && agent_->frozen(); ++i)
        std::this_thread::sleep_for(10ms);
    }
    std::cout << "  killed " << victims << ": status " << outcome->status << ", frozen for "
              << agent_->frozen_for().count() << " s\n";
    EXPECT_FALSE(agent_->frozen()) << victims;
    if (victims == "guardian") {
      EXPECT_EQ(outcome->status, 0) << outcome->err;
    }
    EXPECT_EQ(type_of(points_.backup()), "incremental");
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
  }
  points_.check();
}

}  // namespace
}  // namespace nbdelta::testing
