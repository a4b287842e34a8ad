#include "client/qmp/client.hpp"

#include <gtest/gtest.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/json/serialize.hpp>
#include <string>

#include "qapi/export_commands.hpp"
#include "qapi/job_commands.hpp"
#include "tests/client/backup/conversation.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::client::qmp {
namespace {

using namespace std::chrono_literals;

constexpr const char* kGreeting =
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": "
    "\"Debian\"}, \"capabilities\": [\"oob\"]}}\r\n";
constexpr const char* kStatus = "{\"running\": true, \"status\": \"running\"}";

class ClientTest : public Conversation {
 protected:
  ClientTest() : ends_(connection("QMP at here")), client_(std::move(ends_.first), clock_) {
    peer_.emplace(std::move(ends_.second));
  }

  Ends ends_;
  Client client_;
  std::optional<Peer> peer_;
};

std::string event(int number) {
  return "{\"event\": \"E" + std::to_string(number) +
         "\", \"data\": {\"n\": 1}, \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n";
}

TEST_F(ClientTest, OpensWithTheCapabilities) {
  spawn([&]() -> asio::awaitable<void> {
    const qapi::Greeting greeting = co_await client_.open();
    EXPECT_EQ(greeting.major, 7U);
    EXPECT_EQ(greeting.minor, 2U);
    EXPECT_EQ(greeting.micro, 22U);
  });
  spawn([&]() -> asio::awaitable<void> {
    co_await peer_->send(kGreeting);
    const std::string name = co_await peer_->answer("{}");
    EXPECT_EQ(name, "qmp_capabilities");
  });
  run();
}

struct NoQmp {
  const char* name;
  std::string bytes;
  int error_number;
  const char* message;
};

TEST_F(Conversation, WhatIsNoQmpServerIsRefused) {
  const NoQmp kRows[] = {
      {"the_agent", "{\"return\": {}}\n", EPROTO, "is no QMP server"},
      {"an_event_first", event(1), EPROTO, "is no QMP server"},
      {"ssh", "SSH-2.0-OpenSSH_9.2\r\n", EPROTO, "SSH-2.0"},
      {"nbd", std::string("NBDMAGICIHAVEOPT\0\3\n", 19), EPROTO, "NBDMAGIC"},
      {"nbd_without_a_line", std::string("NBDMAGICIHAVEOPT\0\3", 18), EPROTO, "no JSON object"},
      {"http", "HTTP/1.1 400 Bad Request\r\n\r\n", EPROTO, "HTTP/1.1"},
      {"silence", "", ETIMEDOUT, "no greeting came"},
      {"half_a_greeting", "{\"QMP\": {", ETIMEDOUT, "no greeting came"},
  };
  for (const NoQmp& row : kRows) {
    Ends ends = connection("QMP at here");
    Client client(std::move(ends.first), clock_);
    Peer peer(std::move(ends.second));
    const Clock::Time start = clock_.now();
    spawn([&]() -> asio::awaitable<void> {
      try {
        co_await client.open();
        ADD_FAILURE() << row.name;
      } catch (const Error& error) {
        EXPECT_EQ(error.error_number(), row.error_number) << row.name;
        EXPECT_IN(row.message, error.what());
        EXPECT_IN("QMP at here", error.what());
      }
    });
    spawn([&]() -> asio::awaitable<void> { co_await peer.send(row.bytes); });
    run();
    const Clock::Duration expected = row.error_number == ETIMEDOUT ? Client::kGreeting : 0s;
    EXPECT_EQ(clock_.now() - start, expected) << row.name;
  }
}

TEST_F(ClientTest, AServerThatClosesAtOnceIsLost) {
  peer_.reset();
  spawn([&]() -> asio::awaitable<void> {
    const std::string error =
        co_await error_of<ChannelLost>([&]() -> asio::awaitable<void> { co_await client_.open(); });
    EXPECT_IN("QMP at here: the other end has closed", error);
  });
  run();
}

TEST_F(ClientTest, ARefusalOfTheCapabilitiesIsAnError) {
  spawn([&]() -> asio::awaitable<void> {
    const std::string error = co_await error_of<qapi::CommandError>(
        [&]() -> asio::awaitable<void> { co_await client_.open(); });
    EXPECT_IN("qmp_capabilities: no", error);
  });
  spawn([&]() -> asio::awaitable<void> {
    co_await peer_->send(kGreeting);
    co_await peer_->command();
    co_await peer_->send("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n");
  });
  run();
}

TEST_F(ClientTest, EveryCommandHasAnIdOfItsOwn) {
  spawn([&]() -> asio::awaitable<void> {
    for (int i = 0; i < 3; ++i) {
      const qapi::RunState state = co_await client_.call(qapi::QueryStatus{});
      EXPECT_TRUE(state.running);
    }
  });
  spawn([&]() -> asio::awaitable<void> {
    std::set<std::string> ids;
    for (int i = 0; i < 3; ++i) {
      const qapi::Command command = co_await peer_->command();
      EXPECT_EQ(command.name, "query-status");
      EXPECT_TRUE(command.id);
      const std::string id = qapi::json::serialize(*command.id);
      EXPECT_TRUE(ids.insert(id).second);
      const std::string reply =
          std::string("{\"id\": ") + id + ", \"return\": " + kStatus + "}\r\n";
      co_await peer_->send(reply);
    }
  });
  run();
}

TEST_F(ClientTest, AnAnswerMayComeInPiecesAndWithOthers) {
  spawn([&]() -> asio::awaitable<void> {
    for (int i = 0; i < 2; ++i) {
      const qapi::RunState state = co_await client_.call(qapi::QueryStatus{});
      EXPECT_EQ(state.status, "running");
    }
    const qapi::Event first = co_await client_.next_event();
    const qapi::Event second = co_await client_.next_event();
    EXPECT_EQ(first.name, "E1");
    EXPECT_EQ(second.name, "E2");
  });
  spawn([&]() -> asio::awaitable<void> {
    co_await peer_->command();
    const std::string reply = std::string("{\"return\": ") + kStatus + ", \"id\": 1}\r\n";
    for (const char byte : reply) {
      co_await peer_->send(std::string(1, byte));
      co_await clock_.wait(1ms);
    }
    co_await peer_->command();
    const std::string all =
        event(1) + "\r\n" + std::string("{\"return\": ") + kStatus + ", \"id\": 2}\r\n" + event(2);
    co_await peer_->send(all);
  });
  run();
}

TEST_F(ClientTest, ErrorsKeepTheirClass) {
  spawn([&]() -> asio::awaitable<void> {
    for (const char* expected : {"CommandNotFound", "GenericError", "DeviceNotFound"}) {
      try {
        co_await client_.call(qapi::QueryStatus{});
        ADD_FAILURE();
      } catch (const qapi::CommandError& error) {
        EXPECT_EQ(error.error_class(), expected);
        EXPECT_EQ(error.command_not_found(), error.error_class() == "CommandNotFound");
        EXPECT_EQ(error.description(), "what happened");
        EXPECT_IN("query-status: what happened", error.what());
      }
    }
  });
  spawn([&]() -> asio::awaitable<void> {
    int id = 0;
    for (const char* error_class : {"CommandNotFound", "GenericError", "DeviceNotFound"}) {
      co_await peer_->command();
      ++id;
      const std::string with_id = id == 3 ? std::string() : ", \"id\": " + std::to_string(id);
      const std::string reply = std::string("{\"error\": {\"class\": \"") + error_class +
                                "\", \"desc\": \"what happened\"}" + with_id + "}\r\n";
      co_await peer_->send(reply);
    }
  });
  run();
}

TEST_F(ClientTest, EventsThatComeMeanwhileAreKeptInOrder) {
  spawn([&]() -> asio::awaitable<void> {
    co_await client_.call(qapi::QueryStatus{});
    for (int i = 1; i <= 3; ++i) {
      const qapi::Event event = co_await client_.next_event();
      EXPECT_EQ(event.name, "E" + std::to_string(i));
      EXPECT_EQ(event.data.at("n").as_int64(), 1);
    }
  });
  spawn([&]() -> asio::awaitable<void> {
    co_await peer_->send(event(1));
    co_await peer_->send(event(2));
    co_await peer_->answer(kStatus);
    co_await clock_.wait(1h / 2);
    co_await peer_->send(event(3));
  });
  run();
}

TEST_F(ClientTest, KeepsTheLast1024Events) {
  static_assert(Client::kMostEvents == 1024);
  spawn([&]() -> asio::awaitable<void> {
    co_await client_.call(qapi::QueryStatus{});
    for (int i = 7; i <= 1030; ++i) {
      const qapi::Event event = co_await client_.next_event();
      EXPECT_EQ(event.name, "E" + std::to_string(i));
    }
    const std::string error = co_await error_of<TimedOut>([&]() -> asio::awaitable<void> {
      asio::awaitable<qapi::Event> next = client_.next_event();
      co_await before(clock_, clock_.now() + 1s, std::move(next), "no more");
    });
    EXPECT_EQ(error, "no more");
  });
  spawn([&]() -> asio::awaitable<void> {
    std::string events;
    for (int i = 1; i <= 1030; ++i)
      events += event(i);
    co_await peer_->send(events);
    co_await peer_->answer(kStatus);
  });
  run();
}

TEST_F(ClientTest, WaitingForAnEventCanEndWithoutLosingAny) {
  spawn([&]() -> asio::awaitable<void> {
    for (int i = 0; i < 3; ++i) {
      const std::string error = co_await error_of<TimedOut>([&]() -> asio::awaitable<void> {
        asio::awaitable<qapi::Event> next = client_.next_event();
        co_await before(clock_, clock_.now() + 1s, std::move(next), "not yet");
      });
      EXPECT_EQ(error, "not yet");
    }
    const qapi::Event event = co_await client_.next_event();
    EXPECT_EQ(event.name, "E1");
  });
  spawn([&]() -> asio::awaitable<void> {
    const std::string whole = event(1);
    co_await clock_.wait(1500ms);
    co_await peer_->send(whole.substr(0, 20));
    co_await clock_.wait(5s);
    co_await peer_->send(whole.substr(20));
  });
  run();
}

TEST_F(ClientTest, LateAnswersAreDropped) {
  spawn([&]() -> asio::awaitable<void> {
    const std::string error = co_await error_of<TimedOut>(
        [&]() -> asio::awaitable<void> { co_await client_.call(qapi::QueryStatus{}, 5s); });
    EXPECT_IN("query-status was not answered in 5 s", error);
    const std::string again = co_await error_of<TimedOut>(
        [&]() -> asio::awaitable<void> { co_await client_.call(qapi::QueryStatus{}, 5s); });
    EXPECT_IN("QMP at here", again);
    const qapi::RunState state = co_await client_.call(qapi::QueryStatus{});
    EXPECT_EQ(state.status, "running");
  });
  spawn([&]() -> asio::awaitable<void> {
    for (int i = 0; i < 3; ++i)
      co_await peer_->command();
    co_await clock_.wait(1s);
    co_await peer_->send("{\"return\": {\"running\": false, \"status\": \"old\"}, \"id\": 1}\r\n");
    co_await peer_->send(
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"old\"}, \"id\": 2}\r\n");
    const std::string reply = std::string("{\"return\": ") + kStatus + ", \"id\": 3}\r\n";
    co_await peer_->send(reply);
  });
  run();
}

TEST_F(ClientTest, SilenceIsATimeOutAtItsTime) {
  const Clock::Time start = clock_.now();
  spawn([&]() -> asio::awaitable<void> {
    const std::string error = co_await error_of<TimedOut>(
        [&]() -> asio::awaitable<void> { co_await client_.call(qapi::QueryStatus{}); });
    EXPECT_IN("query-status was not answered in 30 s", error);
  });
  run();
  EXPECT_EQ(clock_.now() - start, 30s);
}

TEST_F(ClientTest, ACloseWhileWaitingIsALoss) {
  spawn([&]() -> asio::awaitable<void> {
    const std::string error = co_await error_of<ChannelLost>(
        [&]() -> asio::awaitable<void> { co_await client_.call(qapi::QueryStatus{}); });
    EXPECT_IN("QMP at here", error);
    const std::string again = co_await error_of<ChannelLost>(
        [&]() -> asio::awaitable<void> { co_await client_.call(qapi::QueryStatus{}); });
    EXPECT_IN("QMP at here", again);
    const std::string waiting = co_await error_of<ChannelLost>(
        [&]() -> asio::awaitable<void> { co_await client_.next_event(); });
    EXPECT_IN("QMP at here", waiting);
  });
  spawn([&]() -> asio::awaitable<void> {
    co_await peer_->command();
    co_await peer_->send("{\"return\": {\"runn");
    peer_.reset();
  });
  run();
}

TEST_F(ClientTest, AnAnswerThatMakesNoSenseIsAnError) {
  const std::pair<const char*, const char*> kRows[] = {
      {"nonsense\r\n", "nonsense"},
      {"[1, 2]\r\n", "[1, 2]"},
      {"{\"retrun\": 1}\r\n", "retrun"},
      {"{\"return\": {\"running\": 1, \"status\": \"x\"}, \"id\": 4}\r\n", "query-status.running"},
      {"{\"return\": [], \"id\": 5}\r\n", "query-status is not an object"},
  };
  spawn([&]() -> asio::awaitable<void> {
    for (const auto& row : kRows) {
      try {
        co_await client_.call(qapi::QueryStatus{});
        ADD_FAILURE() << row.first;
      } catch (const Error& error) {
        EXPECT_EQ(error.error_number(), EPROTO);
        EXPECT_IN(row.second, error.what());
      }
    }
  });
  spawn([&]() -> asio::awaitable<void> {
    for (const auto& row : kRows) {
      co_await peer_->command();
      co_await peer_->send(row.first);
    }
  });
  run();
}

TEST_F(Conversation, ConnectsToAPathAndToAHost) {
  const testing::TempFolder folder;
  RealClock clock;
  asio::local::stream_protocol::acceptor unix_acceptor(
      loop_, asio::local::stream_protocol::endpoint(folder / "sock"));
  asio::ip::tcp::acceptor tcp_acceptor(
      loop_, asio::ip::tcp::endpoint(asio::ip::address_v4::loopback(), 0));
  const std::string tcp = "127.0.0.1:" + std::to_string(tcp_acceptor.local_endpoint().port());
  asio::co_spawn(
      loop_,
      [&]() -> asio::awaitable<void> {
        const auto first = co_await connect(folder / "sock", "QMP", clock, clock.now() + 10s);
        EXPECT_EQ(first->name(), "QMP at " + (folder / "sock"));
        const auto second = co_await connect(tcp, "the guest agent", clock, clock.now() + 10s);
        EXPECT_EQ(second->name(), "the guest agent at " + tcp);
      },
      [](const std::exception_ptr& error) { EXPECT_FALSE(error); });
  loop_.run_for(20s);
}

TEST_F(Conversation, ConnectingSaysWhatIsWrongWhere) {
  const testing::TempFolder folder;
  RealClock clock;
  const std::pair<std::string, int> kRows[] = {
      {folder / "none", ENOENT},
      {folder.path() + "/" + std::string(200, 'x'), ENAMETOOLONG},
      {"no-colon-and-no-slash", ENOENT},
      {"127.0.0.1:1", ECONNREFUSED},
      {"127.0.0.1:99999", EINVAL},
      {"localhost:qmp", EINVAL},
  };
  asio::co_spawn(
      loop_,
      [&]() -> asio::awaitable<void> {
        for (const auto& row : kRows) {
          try {
            co_await connect(row.first, "QMP", clock, clock.now() + 10s);
            ADD_FAILURE() << row.first;
          } catch (const Error& error) {
            EXPECT_EQ(error.error_number(), row.second) << error.what();
            EXPECT_IN("QMP at " + row.first, error.what());
          }
        }
      },
      [](const std::exception_ptr& error) { EXPECT_FALSE(error); });
  loop_.run_for(20s);
}

/// Nobody takes connections: QEMU, while it has a client.
TEST_F(Conversation, AServerWhoseQueueIsFullIsNotTakenForOneThatAnswers) {
  const testing::TempFolder folder;
  RealClock clock;
  asio::local::stream_protocol::acceptor acceptor(
      loop_, asio::local::stream_protocol::endpoint(folder / "sock"));
  acceptor.listen(0);
  std::string error;
  asio::co_spawn(
      loop_,
      [&]() -> asio::awaitable<void> {
        std::vector<std::unique_ptr<Channel>> waiting;
        while (waiting.size() < 10)
          waiting.push_back(co_await connect(folder / "sock", "QMP", clock, clock.now() + 10s));
      },
      [&](const std::exception_ptr& thrown) {
        try {
          if (thrown)
            std::rethrow_exception(thrown);
        } catch (const Error& refused) {
          EXPECT_EQ(refused.error_number(), EAGAIN);
          error = refused.what();
        }
      });
  loop_.run_for(20s);
  EXPECT_EQ(error, "QMP at " + (folder / "sock") +
                       ": takes no more connections: others wait for it already");
}

TEST_F(ClientTest, AMessageThatIsTooLongIsSaidToBe) {
  spawn([&]() -> asio::awaitable<void> {
    try {
      co_await client_.call(qapi::QueryStatus{});
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EMSGSIZE);
      EXPECT_IN("QMP at here: a message of more than", error.what());
    }
  });
  spawn_server([&]() -> asio::awaitable<void> {
    co_await peer_->send("{\"event\": \"");
    const std::string much(std::size_t{1} << 20, 'x');
    while (true)
      co_await peer_->send(much);
  });
  run();
}

}  // namespace
}  // namespace nbdelta::client::qmp
