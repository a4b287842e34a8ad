// What comes before a freeze: what the agent can do, who else has frozen the guest, and the
// presync.

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <string>

#include "tests/client/backup/guardian_conversation.hpp"

namespace nbdelta::client::backup {
namespace {

TEST_F(GuardianTest, PresyncIsDone) {
  agent_.script = [](const std::string& name, int count) {
    Behaviour behaviour;
    if (name == "guest-exec-status" && count < 9)
      behaviour.value = qapi::json::value{{"exited", false}};
    return behaviour;
  };
  run_with([this]() -> asio::awaitable<void> {
    const guardian::Prepared prepared = co_await prepare(true);
    EXPECT_EQ(prepared.presync, "done");
    EXPECT_EQ(agent_.count("guest-exec-status"), 10);
    co_await freeze();
    co_await thaw();
    co_await confirm();
  });
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, PresyncThatIsRefusedIsNoReasonToFail) {
  agent_.script = [](const std::string& name, int) {
    Behaviour behaviour;
    if (name == "guest-exec")
      behaviour.error = "Command guest-exec has been disabled";
    return behaviour;
  };
  run_with([this]() -> asio::awaitable<void> {
    const guardian::Prepared prepared = co_await prepare(true);
    EXPECT_EQ(prepared.presync, "refused: Command guest-exec has been disabled");
    const guardian::Frozen frozen = co_await freeze();
    EXPECT_EQ(frozen.file_systems, 2);
    co_await thaw();
    co_await confirm();
  });
}

TEST_F(GuardianTest, PresyncThatFailsInTheGuestIsNoReasonToFail) {
  agent_.script = [](const std::string& name, int) {
    Behaviour behaviour;
    if (name == "guest-exec-status")
      behaviour.value = qapi::json::value{{"exited", true}, {"exitcode", 127}};
    return behaviour;
  };
  run_with([this]() -> asio::awaitable<void> {
    const guardian::Prepared prepared = co_await prepare(true);
    EXPECT_EQ(prepared.presync, "failed in the guest");
  });
}

TEST_F(GuardianTest, PresyncThatIsSlowIsGivenUpAfterHalfAMinute) {
  agent_.script = [](const std::string& name, int) {
    Behaviour behaviour;
    if (name == "guest-exec-status")
      behaviour.value = qapi::json::value{{"exited", false}};
    return behaviour;
  };
  run_with([this]() -> asio::awaitable<void> {
    const Clock::Time start = clock_.now();
    const guardian::Prepared prepared = co_await prepare(true);
    EXPECT_IN("not finished in time", prepared.presync);
    EXPECT_EQ(clock_.now() - start, 30s);
    const guardian::Frozen frozen = co_await freeze();
    EXPECT_EQ(frozen.file_systems, 2);
    co_await thaw();
    co_await confirm();
  });
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, PresyncThatIsNotAnsweredDoesNotPutTheFreezeOutOfStep) {
  agent_.script = [](const std::string& name, int) {
    return Behaviour{.busy = name == "guest-exec" ? 32s : 0s};
  };
  run_with([this]() -> asio::awaitable<void> {
    const guardian::Prepared prepared = co_await prepare(true);
    EXPECT_IN("guest-exec was not answered in time", prepared.presync);
    const guardian::Frozen frozen = co_await freeze();  // not guest-exec's answer
    EXPECT_EQ(frozen.file_systems, 2);
    EXPECT_TRUE(agent_.frozen);
    co_await thaw();
    co_await confirm();
  });
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, AGuestThatSomebodyElseHasFrozenIsLeftAlone) {
  agent_.frozen = true;
  run_with([this]() -> asio::awaitable<void> {
    const std::string error = co_await refusal(prepare());
    EXPECT_IN("frozen already", error);
    EXPECT_IN("nbdelta recover", error);
  });
  EXPECT_TRUE(agent_.frozen);
  EXPECT_EQ(agent_.count(kThaw), 0);
  EXPECT_EQ(agent_.count(kFreeze), 0);
}

TEST_F(GuardianTest, AThawWithoutAFreezeReleasesWhatASessionHasLeft) {
  agent_.frozen = true;
  run_with([this]() -> asio::awaitable<void> {
    const guardian::Thawed thawed = co_await thaw();
    EXPECT_EQ(thawed.file_systems, 2);
    EXPECT_FALSE(thawed.by_deadline);
    EXPECT_NE(thawed.sent_us, 0);
    co_await confirm();
  });
  EXPECT_FALSE(agent_.frozen);
  EXPECT_EQ(guardian_error_, "");
}

struct Unfit {
  const char* name;
  std::function<Behaviour(const std::string&)> behave;
  const char* message;
};

TEST_F(GuardianTest, PrepareRefusesAnAgentThatCannotFreeze) {
  const Unfit kRows[] = {
      {"silent", [](const std::string&) { return Behaviour{.ignored = true}; },
       "does not answer guest-sync-delimited"},
      {"closes", [](const std::string&) { return Behaviour{.lost = true}; },
       "the other end has closed"},
      {"no_fsfreeze",
       [](const std::string& name) {
         Behaviour behaviour;
         if (name == kStatus)
           behaviour.error = "The command guest-fsfreeze-status has not been found";
         return behaviour;
       },
       "has not been found"},
      {"freeze_disabled",
       [](const std::string& name) {
         Behaviour behaviour;
         if (name == kInfo)
           behaviour.value = boost::json::parse(
               "{\"version\": \"1\", \"supported_commands\": [{\"name\": "
               "\"guest-fsfreeze-freeze\", \"enabled\": false}]}");
         return behaviour;
       },
       "does not allow guest-fsfreeze-freeze"},
  };
  for (const Unfit& row : kRows) {
    agent_.script = [&](const std::string& name, int) { return row.behave(name); };
    const Clock::Time start = clock_.now();
    run_with([&]() -> asio::awaitable<void> {
      const std::string error = co_await refusal(prepare());
      EXPECT_IN(row.message, error);
    });
    EXPECT_LE(clock_.now() - start, 5s) << row.name;
    EXPECT_EQ(agent_.count(kFreeze) + agent_.count(kThaw), 0) << row.name;
    EXPECT_EQ(guardian_error_, "") << row.name;
  }
}

TEST_F(GuardianTest, PrepareRefusesAnAgentThatIsNotThere) {
  agent_.reachable = [] { return ECONNREFUSED; };
  run_with([this]() -> asio::awaitable<void> {
    const std::string error = co_await refusal(prepare());
    EXPECT_IN("Connection refused", error);
    const std::string freeze_error = co_await refusal(freeze());
    EXPECT_IN("was not asked to prepare", freeze_error);
  });
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, WhatItDoesNotKnowIsAnErrorAndNothingElse) {
  Ends ends = connection("the guardian");
  Peer session(std::move(ends.first));
  auto guardians_end = std::make_shared<std::unique_ptr<qmp::Channel>>(std::move(ends.second));
  spawn([this, guardians_end]() -> asio::awaitable<void> {
    Guardian guardian(agent_.connect(), std::move(*guardians_end), clock_, 1000);
    co_await guardian.run();
  });
  spawn([&]() -> asio::awaitable<void> {
    for (const char* line :
         {"nonsense", "{\"execute\": \"quit\", \"id\": 1}", "[]",
          "{\"execute\": \"freeze\", \"id\": 1}", "{\"execute\": \"prepare\"}"}) {
      co_await session.send(std::string(line) + "\n");
      const std::string answer = co_await session.line();
      EXPECT_IN("\"error\"", answer);
    }
    Peer closed(std::move(session));
  });
  run();
  EXPECT_TRUE(agent_.seen.empty());
}

}  // namespace
}  // namespace nbdelta::client::backup
