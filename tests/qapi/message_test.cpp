#include "qapi/message.hpp"

#include <gtest/gtest.h>

#include <string>

namespace nbdelta::qapi {
namespace {

// What QEMU 7.2 sends.
TEST(ServerMessage, ReadsTheGreeting) {
  const auto message = parse_server_message(
      R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, )"
      R"("package": "Debian 1:7.2+dfsg-7+deb12u18"}, "capabilities": ["oob"]}})");
  const auto& greeting = std::get<Greeting>(message);
  EXPECT_EQ(greeting.major, 7u);
  EXPECT_EQ(greeting.minor, 2u);
  EXPECT_EQ(greeting.micro, 22u);
  EXPECT_EQ(greeting.package, "Debian 1:7.2+dfsg-7+deb12u18");
}

TEST(ServerMessage, ReadsErrorsWithClassAndDescription) {
  const auto message = parse_server_message(
      R"({"id": 7, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}})");
  const auto& error = std::get<ErrorReply>(message);
  EXPECT_EQ(error.error_class, "CommandNotFound");
  EXPECT_EQ(error.description, "The command x has not been found");
  EXPECT_EQ(error.id, json::value(7));
  EXPECT_TRUE(CommandError("x", error).command_not_found());
  EXPECT_STREQ(CommandError("x", error).what(), "x: The command x has not been found");
}

TEST(ServerMessage, ReadsEventsAndIgnoresWhatIsNew) {
  const auto message = parse_server_message(
      R"({"timestamp": {"seconds": 5, "microseconds": 17}, "event": "STOP", "new-in-11": [1]})");
  const auto& event = std::get<Event>(message);
  EXPECT_EQ(event.name, "STOP");
  EXPECT_EQ(event.seconds, 5);
  EXPECT_EQ(event.microseconds, 17);
  EXPECT_TRUE(event.data.empty());
}

TEST(ServerMessage, RefusesWhatIsNoMessageAndQuotesIt) {
  for (const char* line : {"SSH-2.0-OpenSSH_9.2", "[]", "{}", "{\"return\"", "17", "\x01\x02"}) {
    try {
      parse_server_message(line);
      ADD_FAILURE() << line;
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EPROTO);
    }
  }
}

TEST(ServerMessage, SurvivesDeepNesting) {
  EXPECT_THROW(parse_server_message(std::string(100'000, '[')), Error);
}

TEST(ServerMessage, IsTheSameAfterThereAndBack) {
  const Event event{"JOB_STATUS_CHANGE", {{"id", "j"}, {"status", "ready"}}, 1, 2};
  const auto back = std::get<Event>(parse_server_message(to_line(event)));
  EXPECT_EQ(back.name, event.name);
  EXPECT_EQ(back.data, event.data);
  const Return reply{json::object{{"x", 1}}, json::value("id-1")};
  const auto reply_back = std::get<Return>(parse_server_message(to_line(reply)));
  EXPECT_EQ(reply_back.value, reply.value);
  EXPECT_EQ(reply_back.id, reply.id);
  const Greeting greeting{10, 0, 3, "v"};
  EXPECT_EQ(std::get<Greeting>(parse_server_message(to_line(greeting))).major, 10u);
}

TEST(Command, IsTheSameAfterThereAndBack) {
  const Command command{"blockdev-del", {{"node-name", "nbdelta-0"}}, json::value(3)};
  const Command back = parse_command(to_line(command));
  EXPECT_EQ(back.name, command.name);
  EXPECT_EQ(back.arguments, command.arguments);
  EXPECT_EQ(back.id, command.id);
}

// The descriptions are QEMU 7.2's.
TEST(Command, IsRefusedInQemusWords) {
  struct Row {
    const char* line;
    const char* description;
  };
  for (const Row& row : {
           Row{"[1]", "QMP input must be a JSON object"},
           Row{"{\"execute\": 1}", "QMP input member 'execute' must be a string"},
           Row{"{\"arguments\": {}}", "QMP input lacks member 'execute'"},
           Row{"{\"execute\": \"x\", \"arguments\": 1}",
               "QMP input member 'arguments' must be an object"},
           Row{"{\"execute\": \"x\", \"what\": 1}", "QMP input member 'what' is unexpected"},
       }) {
    try {
      parse_command(row.line);
      ADD_FAILURE() << row.line;
    } catch (const CommandError& error) {
      EXPECT_EQ(error.description(), row.description) << row.line;
      EXPECT_EQ(error.error_class(), "GenericError");
    }
  }
}

}  // namespace
}  // namespace nbdelta::qapi
