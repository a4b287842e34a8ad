// However the agent, the session and the channels behave: the guest is thawed, or somebody is told.

#include <gtest/gtest.h>

#include <string>

#include "tests/client/backup/guardian_conversation.hpp"

namespace nbdelta::client::backup {
namespace {

TEST_F(GuardianTest, FreezesThawsAndConfirms) {
  agent_.script = [](const std::string& name, int) {
    Behaviour behaviour;
    if (name == kFreeze)
      behaviour.busy = 60ms;
    if (name == kThaw)
      behaviour.busy = 15ms;
    return behaviour;
  };
  run_with([this]() -> asio::awaitable<void> {
    const guardian::Prepared prepared = co_await prepare();
    EXPECT_EQ(prepared.agent_version, "7.2.0");
    EXPECT_EQ(prepared.presync, "");
    EXPECT_EQ(agent_.names(), (Names{kSync, kStatus, kInfo}));
    const Clock::Time sent = clock_.now();
    const guardian::Frozen frozen = co_await freeze();
    EXPECT_TRUE(agent_.frozen);
    EXPECT_EQ(frozen.file_systems, 2);
    EXPECT_EQ(frozen.sent_us, microseconds(sent));
    EXPECT_EQ(frozen.answered_us - frozen.sent_us, 60'000);
    co_await clock_.wait(3ms);
    const guardian::Thawed thawed = co_await thaw();
    EXPECT_FALSE(agent_.frozen);
    EXPECT_EQ(thawed.file_systems, 2);
    EXPECT_EQ(thawed.sent_us - frozen.answered_us, 3'000);
    EXPECT_EQ(thawed.answered_us - thawed.sent_us, 15'000);
    EXPECT_FALSE(thawed.by_deadline);
    // Nothing but these inside the window.
    EXPECT_EQ(agent_.names(), (Names{kSync, kStatus, kInfo, kFreeze, kThaw}));
    co_await confirm();
    EXPECT_EQ(agent_.names().back(), kStatus);
  });
  EXPECT_EQ(guardian_error_, "");
  EXPECT_FALSE(agent_.frozen);
  EXPECT_EQ(agent_.connections, 1);
}

TEST_F(GuardianTest, CanFreezeAgainAfterAConfirmedThaw) {
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    for (int i = 0; i < 3; ++i) {
      co_await freeze();
      const std::string twice = co_await refusal(freeze());
      EXPECT_IN("has not seen the last thaw", twice);
      EXPECT_TRUE(agent_.frozen);
      co_await thaw();
      const guardian::Thawed again = co_await thaw();  // the same answer
      EXPECT_EQ(again.file_systems, 2);
      co_await confirm();
      co_await confirm();
      EXPECT_FALSE(agent_.frozen);
    }
  });
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, FreezesSomeFileSystemsAlone) {
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    const std::vector<std::string> mountpoints{"/", "/home"};
    const guardian::Freeze command{.mountpoints = mountpoints, .deadline_ms = 10'000};
    co_await session_->call(command);
    EXPECT_EQ(agent_.names().back(), "guest-fsfreeze-freeze-list");
    co_await thaw();
    co_await confirm();
  });
  EXPECT_FALSE(agent_.frozen);
}

TEST_F(GuardianTest, AFreezeThatTakesLongIsWaitedForUntilTheDeadline) {
  agent_.script = [](const std::string& name, int) {
    return Behaviour{.busy = name == kFreeze ? 7s : 0s};
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    const guardian::Frozen frozen = co_await freeze();
    EXPECT_EQ(frozen.answered_us - frozen.sent_us, 7'000'000);
    EXPECT_TRUE(agent_.frozen);
    const guardian::Thawed thawed = co_await thaw();
    EXPECT_FALSE(thawed.by_deadline);
    co_await confirm();
  });
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, TheDeadlineCountsFromTheFreezesDeparture) {
  agent_.script = [](const std::string& name, int) {
    return Behaviour{.busy = name == kFreeze ? 7s : 0s};
  };
  Clock::Time sent;
  run_with([&]() -> asio::awaitable<void> {
    co_await prepare();
    sent = clock_.now();
    co_await freeze();
    co_await clock_.wait(20s);  // a session that hangs
    EXPECT_FALSE(agent_.frozen);
    const guardian::Thawed thawed = co_await thaw();
    EXPECT_TRUE(thawed.by_deadline);
    EXPECT_EQ(thawed.file_systems, 2);
    EXPECT_EQ(thawed.sent_us - microseconds(sent), 10'000'000);
    EXPECT_GE(thawed.answered_us, thawed.sent_us);
    co_await confirm();
  });
  EXPECT_EQ(*agent_.thawed_at - sent, 10s);
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, AFreezeThatIsNeverAnsweredIsThawedAtTheDeadline) {
  agent_.script = [](const std::string& name, int) { return Behaviour{.silent = name == kFreeze}; };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    const std::string error = co_await refusal(freeze());
    EXPECT_IN("was not answered in time", error);
    EXPECT_IN("the guest was thawed at once", error);
    EXPECT_FALSE(agent_.frozen);
    const guardian::Thawed thawed = co_await thaw();
    EXPECT_TRUE(thawed.by_deadline);
    co_await confirm();
  });
  EXPECT_EQ(frozen_for(), 10s);
  EXPECT_EQ(guardian_error_, "");
}

/// The agent is stuck in the freeze for longer than the deadline: the thaw waits in the channel,
/// and is the first thing that it does then.
TEST_F(GuardianTest, AFreezeThatIsAnsweredAfterTheDeadlineIsThawedAtOnce) {
  agent_.script = [](const std::string& name, int) {
    return Behaviour{.busy = name == kFreeze ? 15s : 0s};
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    const std::string error = co_await refusal(freeze());
    EXPECT_IN("a thaw was sent and is not confirmed yet", error);
    co_await confirm();
    EXPECT_FALSE(agent_.frozen);
  });
  EXPECT_EQ(frozen_for(), 0s);
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, AnErrorAfterFreezingIsThawed) {
  agent_.script = [](const std::string& name, int) {
    Behaviour behaviour;
    if (name == kFreeze)
      behaviour.error = "failed to freeze /home";
    return behaviour;
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    const std::string error = co_await refusal(freeze());
    EXPECT_IN("failed to freeze /home", error);
    EXPECT_IN("the guest was thawed at once", error);
    EXPECT_FALSE(agent_.frozen);
    co_await thaw();
    co_await confirm();
  });
  EXPECT_EQ(frozen_for(), 0s);
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, AnAnswerThatMakesNoSenseIsThawed) {
  agent_.script = [](const std::string& name, int) {
    Behaviour behaviour;
    if (name == kFreeze)
      behaviour.value = "many";
    return behaviour;
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    const std::string error = co_await refusal(freeze());
    EXPECT_IN("is not a number", error);
    EXPECT_FALSE(agent_.frozen);
  });
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, ASessionThatDiesWhileTheGuestIsFrozenIsThawedAndConfirmed) {
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    co_await freeze();
    co_await clock_.wait(2s);
  });
  EXPECT_FALSE(agent_.frozen);
  EXPECT_EQ(frozen_for(), 2s);
  EXPECT_EQ(agent_.names().back(), kStatus);
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, ASessionThatDiesDuringTheFreezeIsThawedWhenTheFreezeIsAnswered) {
  agent_.script = [](const std::string& name, int) {
    return Behaviour{.busy = name == kFreeze ? 3s : 0s};
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    asio::awaitable<guardian::Frozen> call = freeze();
    try {
      co_await before(clock_, clock_.now() + 1s, std::move(call), "killed");
    } catch (const TimedOut&) {
    }
  });
  EXPECT_FALSE(agent_.frozen);
  EXPECT_EQ(frozen_for(), 0s);
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, ASessionThatDiesAfterAThawWithoutAnAnswerIsThawedAgain) {
  agent_.script = [](const std::string& name, int count) {
    return Behaviour{.ignored = name == kThaw && count < 3};
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    co_await freeze();
    asio::awaitable<guardian::Thawed> call = thaw();
    try {
      co_await before(clock_, clock_.now() + 1s, std::move(call), "killed");
    } catch (const TimedOut&) {
    }
  });
  EXPECT_FALSE(agent_.frozen);
  EXPECT_EQ(agent_.count(kThaw), 4);
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, ASessionThatNeverFroze) {
  run_with([this]() -> asio::awaitable<void> { co_await prepare(); });
  EXPECT_EQ(agent_.count(kThaw), 0);
  EXPECT_EQ(guardian_error_, "");
  EXPECT_EQ(ended_at_, session_ended_at_);
}

TEST_F(GuardianTest, AnAgentWhoseChannelDiesAndComesBackIsThawed) {
  for (const char* dies_at : {kFreeze, kThaw, kStatus}) {
    agent_.frozen = false;
    agent_.seen.clear();
    agent_.connections = 0;
    bool armed = false;
    bool died = false;
    agent_.script = [&](const std::string& name, int) {
      const bool lost = armed && !died && name == dies_at;
      died = died || lost;
      return Behaviour{.lost = lost};
    };
    run_with([&]() -> asio::awaitable<void> {
      co_await prepare();
      armed = true;
      try {
        co_await freeze();
        co_await thaw();
      } catch (const qapi::CommandError&) {
      }
      co_await confirm();
      EXPECT_FALSE(agent_.frozen) << dies_at;
    });
    EXPECT_TRUE(died) << dies_at;
    EXPECT_EQ(agent_.connections, 2) << dies_at;
    EXPECT_EQ(guardian_error_, "") << dies_at;
  }
}

TEST_F(GuardianTest, AChannelThatDiesAfterTheSessionIsReopened) {
  agent_.script = [](const std::string& name, int count) {
    return Behaviour{.lost = name == kSync && count == 1};  // the one with the last thaw
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    co_await freeze();
  });
  EXPECT_FALSE(agent_.frozen);
  EXPECT_EQ(agent_.connections, 2);
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, AnAgentThatComesBackLateIsThawedWhileTheSessionLives) {
  std::optional<Clock::Time> back;
  agent_.reachable = [&] { return !back || clock_.now() >= *back ? 0 : ECONNREFUSED; };
  agent_.script = [](const std::string& name, int count) {
    return Behaviour{.ignored = name == kThaw, .lost = name == kFreeze && count == 0};
  };
  run_with([&]() -> asio::awaitable<void> {
    co_await prepare();
    back = clock_.now() + 60s;
    const std::string error = co_await refusal(freeze());
    EXPECT_IN("not confirmed yet", error);
    EXPECT_TRUE(agent_.frozen);
    agent_.script = [](const std::string&, int) { return Behaviour{}; };
    const std::string first = co_await refusal(confirm());
    EXPECT_IN("the guest may still be frozen", first);
    EXPECT_IN("Connection refused", first);
    EXPECT_IN("goes on trying", first);
    co_await clock_.wait(60s);
    EXPECT_FALSE(agent_.frozen);  // nobody asked
    co_await confirm();
  });
  EXPECT_EQ(guardian_error_, "");
  EXPECT_LE(*agent_.thawed_at, *back + 5s);
}

TEST_F(GuardianTest, AGuestThatStaysFrozenIsThawedAgainAndAgain) {
  agent_.script = [](const std::string& name, int count) {
    Behaviour behaviour;
    if (name == kStatus && count > 0 && count < 6)
      behaviour.value = "frozen";
    return behaviour;
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    co_await freeze();
    co_await thaw();
    co_await confirm();
    EXPECT_EQ(agent_.count(kStatus), 7);
    EXPECT_GE(agent_.count(kThaw), 5);
  });
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, AGuestThatStaysFrozenForLongerThanConfirmWaitsIsReportedAndStillThawed) {
  agent_.script = [this](const std::string& name, int) {
    Behaviour behaviour;
    if (name == kStatus && agent_.frozen_at && clock_.now() < *agent_.frozen_at + 90s)
      behaviour.value = "frozen";
    return behaviour;
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    co_await freeze();
    co_await thaw();
    const std::string error = co_await refusal(confirm());
    EXPECT_IN("guest-fsfreeze-status says 'frozen'", error);
  });
  EXPECT_GE(ended_at_, *agent_.frozen_at + 90s);
  EXPECT_LE(ended_at_, *agent_.frozen_at + 95s);
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, AnAgentThatHangsForLongIsThawedInTheEnd) {
  agent_.script = [](const std::string& name, int count) {
    return Behaviour{.busy = name == kThaw && count == 0 ? 5min : 0s};
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    co_await freeze();
    const std::string error = co_await refusal(thaw());
    EXPECT_IN("guest-fsfreeze-thaw was not answered in time", error);
    const std::string still = co_await refusal(confirm());
    EXPECT_IN("the guest may still be frozen", still);
  });
  EXPECT_FALSE(agent_.frozen);
  EXPECT_EQ(agent_.connections, 1);  // a new one would not be answered either
  EXPECT_EQ(guardian_error_, "");
}

TEST_F(GuardianTest, AnAgentThatIsGoneForGoodIsSaidToBe) {
  bool gone = false;
  agent_.reachable = [&] { return gone ? ECONNREFUSED : 0; };
  agent_.script = [&](const std::string& name, int) {
    if (name == kFreeze)
      gone = true;
    return Behaviour{.lost = name == kFreeze};
  };
  run_with([this]() -> asio::awaitable<void> {
    co_await prepare();
    const std::string error = co_await refusal(freeze());
    EXPECT_IN("not confirmed yet", error);
  });
  EXPECT_IN("the guest may be frozen", guardian_error_);
  EXPECT_IN("its agent's channel is gone", guardian_error_);
  EXPECT_IN("Connection refused", guardian_error_);
  EXPECT_GE(ended_at_, session_ended_at_ + 60s);
  EXPECT_LE(ended_at_, session_ended_at_ + 70s);
}

TEST_F(GuardianTest, AGuestThatNobodyThinksFrozenIsLeftWhereTheAgentDoesNotAnswer) {
  agent_.script = [](const std::string&, int) { return Behaviour{.lost = true}; };
  for (const bool leave : {false, true}) {
    run_with([this, leave]() -> asio::awaitable<void> {
      co_await refusal(thaw());
      if (leave)
        co_await session_->call(guardian::Leave{});
      else  // it goes on until the agent answers
        spawn([this]() -> asio::awaitable<void> {
          co_await clock_.wait(10min);
          agent_.script = [](const std::string&, int) { return Behaviour{}; };
        });
    });
    EXPECT_EQ(guardian_error_, "");
    EXPECT_TRUE(session_was_gone_);
    EXPECT_EQ(ended_at_ - session_ended_at_ > 1min, !leave) << leave;
    agent_.script = [](const std::string&, int) { return Behaviour{.lost = true}; };
  }
}

/// Only that nobody listens, for a minute on end, means that the guest is gone.
TEST_F(GuardianTest, AnAgentThatCannotBeReachedForAWhileIsThawedAfterTheSession) {
  struct Row {
    const char* name;
    std::function<int(Clock::Duration since_the_session)> error;  // 0: it can be reached
  };
  const Row kRows[] = {
      {"forwarded_channel_restarts", [](auto since) { return since < 50s ? ECONNREFUSED : 0; }},
      {"path_made_anew", [](auto since) { return since < 50s ? ENOENT : 0; }},
      {"host_away_for_long", [](auto since) { return since < 30min ? EHOSTUNREACH : 0; }},
      {"others_in_the_queue", [](auto since) { return since < 30min ? EAGAIN : 0; }},
      {"no_descriptors_left", [](auto since) { return since < 30min ? EMFILE : 0; }},
      {"refused_with_breaks",
       [](auto since) {
         const bool refused = since % 50s < 40s;
         return since > 30min ? 0 : refused ? ECONNREFUSED : ETIMEDOUT;
       }},
  };
  for (const Row& row : kRows) {
    agent_.frozen = false;
    agent_.seen.clear();
    std::optional<Clock::Time> died;
    agent_.reachable = [&] { return died ? row.error(clock_.now() - *died) : 0; };
    agent_.script = [&](const std::string& name, int) {
      if (name == kFreeze)
        died = clock_.now();
      return Behaviour{.lost = name == kFreeze};
    };
    run_with([this]() -> asio::awaitable<void> {
      co_await prepare();
      co_await refusal(freeze());
    });
    EXPECT_FALSE(agent_.frozen) << row.name;
    EXPECT_EQ(guardian_error_, "") << row.name;
    EXPECT_EQ(agent_.names().back(), kStatus) << row.name;
  }
}

}  // namespace
}  // namespace nbdelta::client::backup
