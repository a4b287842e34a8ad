#include <fmt/format.h>
#include <signal.h>

#include <boost/json/serialize.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
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

/// Nobody has reason to think that the guest is frozen.
TEST_F(AgentTest, RecoverLeavesNoGuardianWhereTheAgentDoesNotAnswer) {
  const Background silent({"socat", "UNIX-LISTEN:" + address() + ",fork", "SYSTEM:sleep 300"});
  while (!std::filesystem::exists(address()))
    std::this_thread::sleep_for(2ms);
  const Outcome outcome =
      run(nbdelta_command({"recover", "--qmp", machine_.qmp(), "--agent", address()}));
  EXPECT_EQ(outcome.status, 1) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("whether the guest is frozen cannot be told"));
  std::string guardians = "one";
  for (int i = 0; i < 200 && !guardians.empty(); ++i) {
    guardians = run({"pgrep", "-f", "guardian " + address()}).out;
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_EQ(guardians, "");
}

/// Who reads to its end what nbdelta says does not wait for the guardian that stays.
TEST_F(AgentTest, AGuardianThatStaysDoesNotKeepTheOutputOpen) {
  run_ok(points_.command("begin", {"--quiesce", "no"}));
  const std::string journal = points_.vm_folder() + "/nbdelta-session.json";
  json::object text = json::parse(text_of_file(journal)).as_object();
  text["may-be-frozen"] = true;
  std::ofstream(journal) << text;
  const Background silent({"socat", "UNIX-LISTEN:" + address() + ",fork", "SYSTEM:sleep 300"});
  while (!std::filesystem::exists(address()))
    std::this_thread::sleep_for(2ms);
  Command words{"sh", "-c", "\"$@\" 2>&1 | cat", "sh"};
  const Outcome outcome =
      run(joined(words, points_.command("recover", {"--agent", address()})), {}, 60s);
  EXPECT_THAT(outcome.out, HasSubstr("whether the guest is frozen cannot be told"));
  std::istringstream guardians(run({"pgrep", "-f", "guardian " + address()}).out);
  pid_t guardian = 0;
  EXPECT_TRUE(guardians >> guardian);  // it goes on trying
  if (guardian > 0)
    ::kill(guardian, SIGKILL);
}

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

TEST_F(AgentTest, FreezeOfNothing) {
  start_agent({.freezes_nothing = true});
  expect_crash_consistent(run(command({})), "the agent has frozen no file system");
  const Outcome required = run(command({"--quiesce", "require"}));
  EXPECT_EQ(required.status, 3) << required.err;
  EXPECT_THAT(required.err, HasSubstr("a freeze was required; the guest runs as before"));
  EXPECT_FALSE(agent_->frozen());
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
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

/// What it says is written down, and must leave that readable.
TEST_F(AgentTest, AnswerThatIsNoUtf8) {
  start_agent({.freeze_answer = "\xfe{{\n"});
  expect_crash_consistent(run(command({})), "is no message of QMP or the guest agent");
  EXPECT_GE(agent_->count("guest-fsfreeze-thaw"), 1);
  points_.backup();
}

TEST_F(AgentTest, VersionThatIsNoUtf8) {
  start_agent({.version = "7.2\xfc"});
  expect_crash_consistent(run(command({})), "is no message of QMP or the guest agent");
  points_.backup();
}

TEST_F(AgentTest, ThawThatWorksAtTheThirdAttempt) {
  start_agent({.thaws_that_fail = 2});
  const Outcome outcome = run(command({"--quiesce", "require"}));
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("the thaw had to be repeated: guest-fsfreeze-thaw: cannot"));
  const json::value result = json::parse(outcome.out);
  EXPECT_EQ(result.at("consistency").as_string(), "application");
  EXPECT_FALSE(agent_->frozen());
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

TEST_F(AgentTest, AgentThatDiesInTheFreeze) {
  start_agent({.dies_in_freeze = true});
  expect_crash_consistent(run(command({})), "has closed the connection");
  EXPECT_GE(agent_->count("guest-fsfreeze-thaw"), 1);
}

/// Side by side: most of their time goes by in waiting for an answer.
TEST(Agent, ThatCannotBeUsed) {
  struct Row {
    AgentFaults faults;
    std::string message;
  };
  const Row kRows[] = {
      {{.silent = true}, "does not answer guest-sync-delimited"},
      {{.garbage = true}, "does not answer guest-sync-delimited"},
      {{.frozen_already = true}, "the guest is frozen already"},
  };
  struct Case {
    Case(const Row& tried, const std::string& quiesce)
        : row(tried), status(quiesce == "require" ? 3 : 0), agent(address, tried.faults) {
      const Command more{"--agent", address, "--quiesce", quiesce};
      nbdelta.emplace(points.command("backup", more));
    }
    const Row& row;
    int status;
    Machine machine{{{.name = "vda"}}};
    Points points{machine};
    std::string address = machine.folder() + "/agent";
    FakeAgent agent;
    std::optional<Background> nbdelta;
  };
  std::vector<std::unique_ptr<Case>> cases;
  for (const Row& row : kRows)
    for (const char* quiesce : {"auto", "require"})
      cases.push_back(std::make_unique<Case>(row, quiesce));
  for (const auto& each : cases) {
    const auto outcome = each->nbdelta->wait(kDefaultTimeout);
    ASSERT_TRUE(outcome);
    EXPECT_EQ(outcome->status, each->status) << outcome->err;
    EXPECT_THAT(outcome->err, HasSubstr(each->row.message));
    EXPECT_EQ(each->agent.count("guest-fsfreeze-freeze"), 0);
    EXPECT_THAT(each->machine.leftovers(), IsEmpty());
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

class Death : public AgentTest {
 protected:
  Death() { points_.backup(); }

  /// A backup whose "nbdelta", "guardian" or "both" are killed while the guest is frozen.
  Outcome die_in_the_freeze(const std::string& victims) {
    agent_.reset();
    std::filesystem::remove(address());
    start_agent({.freeze_takes = 700ms});
    machine_.write(machine_.disks()[0], "write -P 7 0 1M");
    Background nbdelta(command({}));
    while (!agent_->frozen())
      std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(100ms);
    std::istringstream guardians(run({"pgrep", "-f", "guardian " + address()}).out);
    pid_t guardian = 0;
    EXPECT_TRUE(guardians >> guardian);
    if (victims != "nbdelta" && guardian > 0)
      ::kill(guardian, SIGKILL);
    if (victims != "guardian")
      nbdelta.signal(SIGKILL);
    return nbdelta.wait(kDefaultTimeout).value();
  }

  void wait_for_the_thaw() const {
    for (int i = 0; i < 500 && agent_->frozen(); ++i)
      std::this_thread::sleep_for(10ms);
    EXPECT_FALSE(agent_->frozen());
  }

  void expect_all_right() {
    EXPECT_EQ(type_of(points_.backup()), "incremental");
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
    points_.check();
  }
};

TEST_F(Death, InTheFreeze) {
  for (const std::string victims : {"nbdelta", "guardian", "both"}) {
    SCOPED_TRACE(victims);
    const Outcome outcome = die_in_the_freeze(victims);
    if (victims == "both")
      run_ok(points_.command("recover", {"--agent", address()}));
    wait_for_the_thaw();
    std::cout << "  killed " << victims << ": status " << outcome.status << ", frozen for "
              << agent_->frozen_for().count() << " s\n";
    if (victims == "guardian") {
      EXPECT_EQ(outcome.status, 0) << outcome.err;
    }
    expect_all_right();
  }
}

/// The guest's agent is in the journal, and QEMU may hang.
TEST_F(Death, TheNextOneThawsBeforeItSpeaksToQemu) {
  for (const char* next : {"recover", "backup"}) {
    SCOPED_TRACE(next);
    die_in_the_freeze("both");
    EXPECT_EQ(points_.phase(), "window");
    ::kill(machine_.pid(), SIGSTOP);
    Background nbdelta(points_.command(next));
    wait_for_the_thaw();
    EXPECT_TRUE(nbdelta.running());
    ::kill(machine_.pid(), SIGCONT);
    const auto outcome = nbdelta.wait(kDefaultTimeout);
    ASSERT_TRUE(outcome);
    EXPECT_EQ(outcome->status, 0) << outcome->err;
    EXPECT_THAT(outcome->err, HasSubstr("thawed 2 file systems of the guest"));
    expect_all_right();
  }
}

}  // namespace
}  // namespace nbdelta::testing
