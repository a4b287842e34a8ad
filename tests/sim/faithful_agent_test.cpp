#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "sim/fake_agent.hpp"
#include "tests/guest/guest.hpp"
#include "tests/sim/fake_client.hpp"
#include "tests/sim/transcript.hpp"
#include "tests/support/line_socket.hpp"
#include "tests/support/temp_folder.hpp"

/// The same lines are sent to the agent of a real guest with two file systems, and to the fake one;
/// what both answer must be the same. Not compared: versions, commands that nbdelta does not use,
/// the numbers of processes, what a program in the guest comes to, and freeze-list of what is no
/// mount point (the fake counts what it is told).
namespace nbdelta::testing {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;

constexpr std::uint64_t kDiskSize = std::uint64_t{64} << 20;  // bytes
constexpr auto kPatience = 20s;
constexpr auto kNothing = 1500ms;  // that long nothing is answered to the second client

using Receive = std::function<std::optional<std::string>(std::chrono::milliseconds)>;

/// One client of an agent's port.
struct Port {
  std::function<void(const std::string&)> send;
  Receive receive;
};

struct Exchange {
  std::string sent;
  unsigned answers = 1;
};

const std::vector<Exchange>& exchanges() {
  static const std::vector<Exchange> all = {
      {"\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":1}}", 2},
      {R"({"execute":"guest-ping"})"},
      {R"({"execute":"guest-ping","id":7})"},
      {R"({"execute":"guest-info"})"},
      {R"({"execute":"nonsense"})"},
      {R"({"execute":"nonsense","id":"x"})"},
      {R"({"execute":"non\u0000sense"})"},
      {R"({"execute":"guest-ping","id":"a\u0000b"})"},
      {R"({"execute":"guest-sync-delimited"})"},
      {R"({"execute":"guest-sync-delimited","arguments":{"id":"x"}})"},
      {R"({"execute":"guest-sync-delimited","arguments":{"id":2},"id":3})"},
      {"not json", 2},
      {"[1]"},
      {"{}"},
      {R"({"execute":7})"},
      {R"({"execute":"guest-ping","arguments":[]})"},
      {R"({"execute":"guest-ping","foo":1})"},
      {R"({"execute":"guest-ping","arguments":{"a":1}})"},
      {R"({"execute":"guest-info","arguments":{"a":1}})"},
      {R"({"execute":"guest-fsfreeze-status","arguments":{"a":1}})"},
      {R"({"execute":"guest-fsfreeze-thaw","arguments":{"a":1}})"},
      {R"({"execute":"guest-fsfreeze-freeze","arguments":{"mountpoints":["/mnt/vda"]}})"},
      {R"({"execute":"guest-fsfreeze-freeze-list","arguments":{"a":1}})"},
      {R"({"execute":"guest-sync-delimited","arguments":{"id":6,"a":1}})"},
      {R"({"execute":"guest-exec-status","arguments":{"pid":7,"a":1}})"},
      {R"({"execute":"guest-fsfreeze-status"})"},
      {"\xff"},
      {"{\"execute\":\"guest-pi\xff{\"execute\":\"guest-ping\"}", 2},
      {R"({"execute":"guest-fsfreeze-status"})"},
      {R"({"execute":"guest-fsfreeze-thaw"})"},
      {R"({"execute":"guest-exec"})"},
      {R"({"execute":"guest-exec-status","arguments":{"pid":7}})"},
      {R"({"execute":"guest-fsfreeze-freeze-list","arguments":{"mountpoints":"x"}})"},
      {R"({"execute":"guest-fsfreeze-freeze-list","arguments":{"mountpoints":[]}})"},
      {R"({"execute":"guest-fsfreeze-status"})"},
      {R"({"execute":"guest-fsfreeze-freeze-list","arguments":{"mountpoints":["/mnt/vda"]}})"},
      {R"({"execute":"guest-fsfreeze-status"})"},
      {R"({"execute":"guest-fsfreeze-freeze"})"},
      {R"({"execute":"guest-fsfreeze-freeze-list"})"},
      {R"({"execute":"guest-exec","arguments":{"path":"/bin/busybox","arg":["true"]}})"},
      {R"({"execute":"guest-exec-status","arguments":{"pid":7}})"},
      {R"({"execute":"guest-fsfreeze-freeze","arguments":{"a":1}})"},
      {R"({"execute":"guest-fsfreeze-thaw","arguments":{"a":1}})"},
      {R"({"execute":"guest-fsfreeze-status","arguments":{"a":1}})"},
      {R"({"execute":"guest-fsfreeze-status"})"},
      {R"({"execute":"guest-ping"})"},
      {R"({"execute":"guest-info"})"},
      {R"({"execute":"nonsense"})"},
      {R"({"execute":"guest-sync-delimited","arguments":{"id":4}})"},
      {R"({"execute":"guest-fsfreeze-thaw"})"},
      {R"({"execute":"guest-fsfreeze-thaw"})"},
      {R"({"execute":"guest-fsfreeze-freeze"})"},
      {R"({"execute":"guest-fsfreeze-status"})"},
      {R"({"execute":"guest-fsfreeze-thaw","id":9})"},
      {R"({"execute":"guest-exec","arguments":{"path":"/bin/busybox","arg":["true"]}})"},
  };
  return all;
}

/// Without what is not compared.
std::string tidy(std::string line) {
  const bool delimited = line.starts_with('\xff');
  json::object message = json::parse(line.substr(delimited ? 1 : 0)).as_object();
  if (json::value* value = message.if_contains("return"); value != nullptr && value->is_object()) {
    json::object& answer = value->as_object();
    if (answer.contains("pid"))
      answer["pid"] = "some";
    if (const json::value* all = answer.if_contains("supported_commands")) {
      static const std::set<std::string_view> used = {
          "guest-sync-delimited",       "guest-ping",          "guest-info",
          "guest-fsfreeze-status",      "guest-fsfreeze-thaw", "guest-fsfreeze-freeze",
          "guest-fsfreeze-freeze-list", "guest-exec",          "guest-exec-status"};
      std::set<std::string> told;
      for (const json::value& command : all->as_array())
        if (used.count(command.at("name").as_string()) != 0)
          told.insert(fmt::format("{} {}", std::string(command.at("name").as_string()),
                                  command.at("enabled").as_bool()));
      answer = {{"supported_commands", json::array(told.begin(), told.end())}};
    }
  }
  std::string text = json::serialize(message);
  if (const auto* error = message.if_contains("error"))  // the order of members is not compared
    text = json::serialize(*error) +
           (message.contains("id") ? json::serialize(message.at("id")) : std::string());
  return (delimited ? "(0xFF) " : "") + text;
}

std::vector<std::string> talk(const Port& first, const std::function<Port()>& connect,
                              const std::function<void()>& leave) {
  std::vector<std::string> said;
  const auto note = [&](const std::optional<std::string>& answer) {
    said.push_back("< " + (answer ? tidy(*answer) : "nothing"));
  };
  for (const Exchange& exchange : exchanges()) {
    said.push_back("> " + exchange.sent);
    first.send(exchange.sent + "\n");
    for (unsigned i = 0; i < exchange.answers; ++i)
      note(first.receive(kPatience));
  }
  said.emplace_back("another client");
  const Port second = connect();
  second.send("{\"execute\":\"guest-ping\",\"id\":\"second\"}\n");
  note(second.receive(kNothing));
  first.send("{\"execute\":\"guest-ping\",\"id\":\"first\"}\n");
  note(first.receive(kPatience));
  said.emplace_back("half a command, and the first one leaves");
  first.send(R"({"execute":"guest-ping","id":"fi)");
  std::ignore = first.receive(kNothing);
  leave();
  note(second.receive(kPatience));
  second.send("\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":5}}\n");
  note(second.receive(kPatience));
  note(second.receive(kPatience));
  return said;
}

Receive lines_of(LineSocket& socket) {
  return [&socket](std::chrono::milliseconds patience) -> std::optional<std::string> {
    try {
      return socket.read_line(patience);
    } catch (const Error& error) {
      if (error.error_number() != ETIMEDOUT)
        throw;
      return std::nullopt;
    }
  };
}

std::vector<std::string> talk_to_real_one() {
  TempFolder folder;
  std::vector<GuestDisk> disks;
  for (const char* name : {"a", "b"}) {
    disks.push_back(
        {.path = folder / name, .format = "raw", .use = GuestDisk::Use::file_system, .name = name});
    make_disk(disks.back(), kDiskSize);
  }
  GuestOptions options;
  options.start_paused = true;
  Guest guest(folder.path(), disks, options);
  guest.wait_until_ready();
  std::optional<LineSocket> first(guest.agent());
  std::optional<LineSocket> second;
  const auto port = [](LineSocket& socket) {
    return Port{[&socket](const std::string& bytes) { socket.send(bytes); }, lines_of(socket)};
  };
  return talk(
      port(*first),
      [&] {
        second.emplace(guest.agent());
        return port(*second);
      },
      [&] { first.reset(); });
}

std::vector<std::string> talk_to_fake_one() {
  sim::VirtualTime time;
  sim::Process process(time, "guest");
  sim::FakeAgent agent(process.executor(), process.clock());
  const auto connect = [&] {
    return std::make_unique<FakeClient>(
        time, process, [&](auto channel) { return agent.serve(std::move(channel)); });
  };
  const auto port = [](FakeClient& client) {
    return Port{[&client](const std::string& bytes) { client.send(bytes); },
                [&client](std::chrono::milliseconds patience) { return client.receive(patience); }};
  };
  std::unique_ptr<FakeClient> first = connect();
  std::unique_ptr<FakeClient> second;
  return talk(
      port(*first),
      [&] {
        second = connect();
        return port(*second);
      },
      [&] { first.reset(); });
}

TEST(FaithfulAgent, SaysWhatTheAgentSays) {
  const std::vector<std::string> expected = talk_to_real_one();
  const std::string different = difference(expected, talk_to_fake_one());
  EXPECT_TRUE(different.empty()) << different;
}

}  // namespace
}  // namespace nbdelta::testing
