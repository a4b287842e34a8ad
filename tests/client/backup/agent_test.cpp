#include "client/qmp/agent.hpp"

#include <gtest/gtest.h>

#include <string>

#include "qapi/agent_commands.hpp"
#include "tests/client/backup/conversation.hpp"

namespace nbdelta::client::qmp {
namespace {

using namespace std::chrono_literals;
using qapi::agent::GuestFsfreezeStatus;
using qapi::agent::GuestFsfreezeThaw;

const std::string kDelimiter(1, qapi::kDelimiter);

std::string reply(const std::string& value) {
  return "{\"return\": " + value + "}\n";
}

class AgentTest : public Conversation {
 protected:
  AgentTest()
      : ends_(connection("the guest agent at here")), agent_(std::move(ends_.first), clock_) {
    peer_.emplace(std::move(ends_.second));
  }

  asio::awaitable<std::string> status() {
    return agent_.call(GuestFsfreezeStatus{}, clock_.now() + 2s);
  }
  asio::awaitable<void> synchronise(std::int64_t id) {
    return agent_.synchronise(id, clock_.now() + 5s);
  }

  Ends ends_;
  Agent agent_;
  std::optional<Peer> peer_;
};

TEST_F(AgentTest, SendsADelimiterAndAnIdAndTakesBothBack) {
  spawn([&]() -> asio::awaitable<void> {
    co_await synchronise(4711);
    const std::string answer = co_await status();
    EXPECT_EQ(answer, "thawed");
  });
  spawn([&]() -> asio::awaitable<void> {
    const std::string line = co_await peer_->line();
    EXPECT_EQ(line, "{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":4711}}");
    EXPECT_EQ(peer_->received(), kDelimiter + line + "\n");
    co_await peer_->send(kDelimiter + reply("4711"));
    const std::string name = co_await peer_->answer("\"thawed\"");
    EXPECT_EQ(name, "guest-fsfreeze-status");
  });
  run();
}

struct Stale {
  const char* name;
  std::string bytes;  // before the answer
};

TEST_F(Conversation, WhatComesBeforeTheAnswerIsDropped) {
  const Stale kRows[] = {
      {"an_answer", reply("{}")},
      {"the_same_number_without_a_delimiter", reply("7")},
      {"half_an_answer", "{\"return\": {\"x"},
      {"an_earlier_synchronisation", kDelimiter + reply("6")},
      {"two_earlier_synchronisations", kDelimiter + reply("5") + kDelimiter + reply("6")},
      {"an_earlier_one_and_its_command", kDelimiter + reply("6") + reply("\"frozen\"")},
      {"an_error_after_a_delimiter",
       kDelimiter + "{\"error\": {\"class\": \"GenericError\", \"desc\": \"x\"}}\n"},
      {"garbage", std::string("\0\1\2 \"{[\n\n\n", 10)},
      {"garbage_after_a_delimiter", kDelimiter + "login: \n$ \n"},
      {"a_long_line", std::string((std::size_t{3} << 20), 'x')},
      {"a_long_line_after_a_delimiter", kDelimiter + std::string((std::size_t{3} << 20), 'x')},
      {"a_number_like_ours_in_text", kDelimiter + reply("\"7\"") + kDelimiter + reply("7.5")},
  };
  for (const Stale& row : kRows) {
    Ends ends = connection("the guest agent at here");
    Agent agent(std::move(ends.first), clock_);
    Peer peer(std::move(ends.second));
    spawn([&]() -> asio::awaitable<void> {
      try {
        co_await agent.synchronise(7, clock_.now() + 5s);
        const std::string answer = co_await agent.call(GuestFsfreezeStatus{}, clock_.now() + 5s);
        EXPECT_EQ(answer, "thawed") << row.name;
      } catch (const Error& error) {
        ADD_FAILURE() << row.name << ": " << error.what();
      }
    });
    spawn([&]() -> asio::awaitable<void> {
      co_await peer.send(row.bytes);
      co_await peer.command();
      co_await peer.send(kDelimiter + reply("7"));
      co_await peer.answer("\"thawed\"");
    });
    run();
  }
}

TEST_F(AgentTest, WhatWasLeftFromBeforeIsDroppedToo) {
  // Two answers in one piece: the second is still in the buffer at the next synchronisation.
  spawn([&]() -> asio::awaitable<void> {
    co_await synchronise(1);
    const std::string first = co_await status();
    EXPECT_EQ(first, "frozen");
    co_await synchronise(2);
    const std::string second = co_await status();
    EXPECT_EQ(second, "thawed");
  });
  spawn([&]() -> asio::awaitable<void> {
    co_await peer_->command();
    co_await peer_->send(kDelimiter + reply("1"));
    co_await peer_->command();
    co_await peer_->send(reply("\"frozen\"") + reply("\"stale\""));
    co_await peer_->command();
    co_await peer_->send(kDelimiter + reply("2"));
    co_await peer_->answer("\"thawed\"");
  });
  run();
}

TEST_F(AgentTest, HalfAnAnswerAfterADelimiterCostsAtMostOneAttempt) {
  spawn([&]() -> asio::awaitable<void> {
    try {
      co_await synchronise(1);
    } catch (const TimedOut&) {
    }
    co_await synchronise(2);
    const std::string answer = co_await status();
    EXPECT_EQ(answer, "thawed");
  });
  spawn([&]() -> asio::awaitable<void> {
    co_await peer_->send(kDelimiter + "{\"retu");
    co_await peer_->command();
    co_await peer_->send(kDelimiter + reply("1"));
    co_await peer_->command();
    co_await peer_->send(kDelimiter + reply("2"));
    co_await peer_->answer("\"thawed\"");
  });
  run();
}

TEST_F(AgentTest, SilenceIsATimeOutThatSaysWhatToLookAt) {
  const Clock::Time start = clock_.now();
  spawn([&]() -> asio::awaitable<void> {
    const std::string error =
        co_await error_of<TimedOut>([&]() -> asio::awaitable<void> { co_await synchronise(1); });
    EXPECT_IN("the guest agent at here", error);
    EXPECT_IN("is the agent running", error);
  });
  run();
  EXPECT_EQ(clock_.now() - start, 5s);
}

TEST_F(AgentTest, OtherAnswersForEverAreATimeOutToo) {
  bool ended = false;
  spawn([&]() -> asio::awaitable<void> {
    const std::string error =
        co_await error_of<TimedOut>([&]() -> asio::awaitable<void> { co_await synchronise(1); });
    EXPECT_IN("guest-sync-delimited", error);
    ended = true;
  });
  spawn([&]() -> asio::awaitable<void> {
    while (!ended) {
      co_await peer_->send(kDelimiter + reply("2"));
      co_await clock_.wait(100ms);
    }
  });
  run();
}

TEST_F(AgentTest, AnAgentThatAnswersLateIsBroughtBackInStep) {
  spawn([&]() -> asio::awaitable<void> {
    const std::string late =
        co_await error_of<TimedOut>([&]() -> asio::awaitable<void> { co_await synchronise(1); });
    EXPECT_IN("guest-sync-delimited", late);
    co_await synchronise(2);
    const std::string no_answer =
        co_await error_of<TimedOut>([&]() -> asio::awaitable<void> { co_await status(); });
    EXPECT_IN("guest-fsfreeze-status was not answered in time", no_answer);
    co_await synchronise(3);
    const std::string answer = co_await status();
    EXPECT_EQ(answer, "thawed");
  });
  spawn([&]() -> asio::awaitable<void> {
    co_await peer_->command();
    co_await clock_.wait(7s);
    co_await peer_->send(kDelimiter + reply("1"));
    co_await peer_->command();
    co_await peer_->send(kDelimiter + reply("2"));
    co_await peer_->command();
    co_await clock_.wait(3s);
    co_await peer_->send(reply("\"frozen\""));
    co_await peer_->command();
    co_await peer_->send(kDelimiter + reply("3"));
    co_await peer_->answer("\"thawed\"");
  });
  run();
}

TEST_F(AgentTest, ErrorsKeepTheirClass) {
  spawn([&]() -> asio::awaitable<void> {
    co_await synchronise(1);
    try {
      co_await status();
      ADD_FAILURE();
    } catch (const qapi::CommandError& error) {
      EXPECT_TRUE(error.command_not_found());
      EXPECT_IN("guest-fsfreeze-status: The command", error.what());
    }
    const std::string answer = co_await status();  // still in step
    EXPECT_EQ(answer, "thawed");
  });
  spawn([&]() -> asio::awaitable<void> {
    co_await peer_->command();
    co_await peer_->send(kDelimiter + reply("1"));
    co_await peer_->command();
    co_await peer_->send(
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command is unknown\"}}\n");
    co_await peer_->answer("\"thawed\"");
  });
  run();
}

TEST_F(Conversation, AnAnswerOfTheAgentThatMakesNoSenseIsAnError) {
  const std::pair<std::string, int> kRows[] = {
      {"nonsense\n", EPROTO},
      {"{\"event\": \"X\"}\n", EPROTO},
      {"{\"QMP\": {}}\n", EPROTO},
      {reply("3"), EPROTO},
      {reply("null"), EPROTO},
      {reply("\"" + std::string((std::size_t{1} << 20) + 1, 'x') + "\""), EMSGSIZE},
      {std::string((std::size_t{2} << 20), 'x'), EMSGSIZE},
  };
  for (const auto& row : kRows) {
    Ends ends = connection("the guest agent at here");
    Agent agent(std::move(ends.first), clock_);
    Peer peer(std::move(ends.second));
    spawn([&]() -> asio::awaitable<void> {
      try {
        co_await agent.call(GuestFsfreezeStatus{}, clock_.now() + 5s);
        ADD_FAILURE() << row.first.substr(0, 50);
      } catch (const Error& error) {
        EXPECT_EQ(error.error_number(), row.second) << error.what();
      }
    });
    spawn_server([&]() -> asio::awaitable<void> {
      co_await peer.command();
      co_await peer.send(row.first);
    });
    run();
    loop_.poll();
  }
}

TEST_F(AgentTest, ACommandGoesOutWithTheSynchronisation) {
  const qapi::Command thaw = qapi::to_command(GuestFsfreezeThaw{});
  spawn([&]() -> asio::awaitable<void> {
    co_await agent_.synchronise(9, clock_.now() + 5s, thaw);
    const qapi::json::value answer =
        co_await agent_.answer("guest-fsfreeze-thaw", clock_.now() + 5s);
    EXPECT_EQ(answer, 2);
  });
  spawn([&]() -> asio::awaitable<void> {
    // Both are there before anything was answered.
    const qapi::Command first = co_await peer_->command();
    const qapi::Command second = co_await peer_->command();
    EXPECT_EQ(first.name, "guest-sync-delimited");
    EXPECT_EQ(second.name, "guest-fsfreeze-thaw");
    co_await peer_->send(reply("1") + kDelimiter + reply("9") + reply("2"));
  });
  run();
}

TEST_F(AgentTest, ACloseIsALoss) {
  spawn([&]() -> asio::awaitable<void> {
    const std::string first =
        co_await error_of<ChannelLost>([&]() -> asio::awaitable<void> { co_await synchronise(1); });
    EXPECT_IN("the guest agent at here", first);
    const std::string second =
        co_await error_of<ChannelLost>([&]() -> asio::awaitable<void> { co_await status(); });
    EXPECT_IN("the guest agent at here", second);
  });
  spawn([&]() -> asio::awaitable<void> {
    co_await peer_->command();
    co_await peer_->send(kDelimiter + "{\"return\": ");
    peer_.reset();
  });
  run();
}

}  // namespace
}  // namespace nbdelta::client::qmp
