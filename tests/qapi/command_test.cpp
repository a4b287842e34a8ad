#include "qapi/command.hpp"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

#include "qapi/agent_commands.hpp"

namespace nbdelta::qapi {
namespace {

TEST(TypedCommand, GoesOutUnderItsNamesOnTheWire) {
  const agent::GuestExec command{.path = "sync", .arguments = {{"-f", "/"}}};
  EXPECT_EQ(to_line(to_command(command)),
            R"({"execute":"guest-exec","arguments":{"path":"sync","arg":["-f","/"]}})");
  EXPECT_EQ(to_line(to_command(agent::GuestExec{.path = "sync", .arguments = std::nullopt})),
            R"({"execute":"guest-exec","arguments":{"path":"sync"}})");
  EXPECT_EQ(to_line(to_command(agent::GuestFsfreezeFreeze{})),
            R"({"execute":"guest-fsfreeze-freeze"})");
}

TEST(TypedCommand, IsTheSameAtTheOtherEnd) {
  const agent::GuestFsfreezeFreezeList command{.mountpoints = {{"/", "/var"}}};
  const auto back =
      arguments_of<agent::GuestFsfreezeFreezeList>(parse_command(to_line(to_command(command))));
  EXPECT_EQ(back.mountpoints, command.mountpoints);
}

TEST(TypedCommand, ReadsAResultThatHasMoreThanIsKnown) {
  const auto info = result_from<agent::GuestInfo>(json::parse(
      R"({"version": "7.2.22", "new": {}, "supported_commands":
          [{"enabled": true, "name": "guest-ping", "success-response": true}]})"));
  ASSERT_EQ(info.supported_commands.size(), 1u);
  EXPECT_EQ(info.supported_commands[0].name, "guest-ping");
}

TEST(TypedCommand, SaysWhereAResultIsNotAsExpected) {
  struct Row {
    const char* json;
    const char* message;
  };
  for (const Row& row : {
           Row{R"({"supported_commands": []})", "guest-info.version is missing"},
           Row{R"({"version": 7, "supported_commands": []})", "guest-info.version is not a string"},
           Row{R"({"version": "7", "supported_commands": {}})",
               "guest-info.supported_commands is not an array"},
           Row{R"({"version": "7", "supported_commands": [{"name": "x", "enabled": 1}]})",
               "guest-info.supported_commands[0].enabled is not true or false"},
           Row{R"([])", "guest-info is not an object"},
       }) {
    try {
      result_from<agent::GuestInfo>(json::parse(row.json));
      ADD_FAILURE() << row.json;
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), row.message);
    }
  }
  EXPECT_THROW(result_from<agent::GuestFsfreezeFreeze>(json::value(1.5)), Error);
  EXPECT_THROW(result_from<agent::GuestFsfreezeFreeze>(json::value("1")), Error);
  EXPECT_EQ(result_from<agent::GuestFsfreezeFreeze>(json::value(3)), 3);
}

}  // namespace
}  // namespace nbdelta::qapi
