#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>
#include <thread>

#include "tests/sim/live.hpp"
#include "tests/support/line_socket.hpp"

/// The fake guest's sockets, as any client sees them.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
namespace json = boost::json;

constexpr auto kPatience = 10s;
constexpr const char* kRaw = R"({
  "disks": [{"name": "vda", "size": "8 MiB", "format": "raw"}],
  "loads": [{"pattern": "uniform", "rate": "1 MiB/s", "zeros": 0.2, "direct": true}]})";

class LiveSockets : public ::testing::Test {
 protected:
  std::string qmp() const { return sim_.guest() + "/qmp.sock"; }
  std::string agent() const { return sim_.guest() + "/qga.sock"; }

  /// The answer to a command, past events.
  static json::value ask(LineSocket& socket, std::string command) {
    std::replace(command.begin(), command.end(), '\n', ' ');
    socket.send(command + "\n");
    while (true) {
      json::value line = json::parse(socket.read_line(kPatience));
      if (!line.as_object().contains("event"))
        return line;
    }
  }
  static std::unique_ptr<LineSocket> negotiated(const std::string& path) {
    auto socket = std::make_unique<LineSocket>(path);
    EXPECT_THAT(socket->read_line(kPatience), HasSubstr("\"QMP\""));
    ask(*socket, R"({"execute": "qmp_capabilities"})");
    return socket;
  }
  static void expect_done(const json::value& answer) {
    EXPECT_TRUE(answer.as_object().contains("return")) << answer;
  }

  LiveSim sim_{kRaw};
};

TEST_F(LiveSockets, NothingGoesBeforeTheCapabilities) {
  LineSocket socket(qmp());
  socket.read_line(kPatience);
  const json::value answer = ask(socket, R"({"execute": "query-status"})");
  EXPECT_EQ(answer.at_pointer("/error/class").as_string(), "CommandNotFound");
  EXPECT_THAT(std::string(answer.at_pointer("/error/desc").as_string()),
              HasSubstr("qmp_capabilities"));
}

TEST_F(LiveSockets, OneQmpClientAtATime) {
  auto first = negotiated(qmp());
  LineSocket second(qmp());
  EXPECT_THROW(second.read_line(300ms), Error);
  expect_done(ask(*first, R"({"execute": "query-status"})"));
  first.reset();
  EXPECT_THAT(second.read_line(kPatience), HasSubstr("\"QMP\""));
}

/// What the second has sent is carried out when the first has gone.
TEST_F(LiveSockets, OneAgentClientAtATime) {
  auto first = std::make_unique<LineSocket>(agent());
  expect_done(ask(*first, R"({"execute": "guest-ping"})"));
  LineSocket second(agent());
  second.send("{\"execute\": \"guest-ping\"}\n");
  EXPECT_THROW(second.read_line(300ms), Error);
  expect_done(ask(*first, R"({"execute": "guest-ping"})"));
  first.reset();
  EXPECT_THAT(second.read_line(kPatience), HasSubstr("return"));
}

TEST_F(LiveSockets, AFrozenGuestDoesNotWrite) {
  LineSocket socket(agent());
  EXPECT_EQ(ask(socket, R"({"execute": "guest-fsfreeze-freeze"})").at("return"), 1);
  const std::size_t lines = sim_.record().size();
  std::this_thread::sleep_for(300ms);
  EXPECT_EQ(sim_.record().size(), lines);
  EXPECT_EQ(ask(socket, R"({"execute": "guest-fsfreeze-thaw"})").at("return"), 1);
  sim_.wait_for_writes(1);
}

TEST_F(LiveSockets, TheEndIsToldAndTheSocketsGo) {
  auto socket = negotiated(qmp());
  sim_.process().signal(SIGTERM);
  EXPECT_THAT(socket->read_line(kPatience), HasSubstr("\"SHUTDOWN\""));
  EXPECT_EQ(sim_.process().wait(kPatience)->status, 0);
  EXPECT_FALSE(std::filesystem::exists(qmp()));
  EXPECT_FALSE(std::filesystem::exists(agent()));
}

/// A bitmap over NBD has exactly what the record says was written while it was there.
TEST_F(LiveSockets, NbdClientsSeeTheBitmapAndTheData) {
  LineSocket guest(agent());
  auto socket = negotiated(qmp());
  const auto freeze = [&] { expect_done(ask(guest, R"({"execute": "guest-fsfreeze-freeze"})")); };
  const auto bitmap = [&](const std::string& command) {
    expect_done(ask(*socket, fmt::format(R"({{"execute": "block-dirty-bitmap-{}",
        "arguments": {{"node": "vda", "name": "b"}}}})",
                                         command)));
  };
  freeze();
  const std::size_t before = sim_.record().size();
  bitmap("add");
  expect_done(ask(guest, R"({"execute": "guest-fsfreeze-thaw"})"));
  sim_.wait_for_writes(60);
  freeze();
  bitmap("disable");
  const std::string nbd = sim_.guest() + "/nbd.sock";
  expect_done(ask(*socket, fmt::format(R"({{"execute": "nbd-server-start", "arguments":
      {{"addr": {{"type": "unix", "data": {{"path": "{}"}}}}}}}})",
                                       nbd)));
  expect_done(ask(*socket, R"({"execute": "block-export-add", "arguments": {"type": "nbd",
      "id": "e", "node-name": "vda", "name": "disk", "bitmaps": ["b"]}})"));

  const std::string uri = "nbd+unix:///disk?socket=" + nbd;
  std::set<std::uint64_t> dirty;
  for (const NbdExtent& extent : nbdinfo_map(uri, "qemu:dirty-bitmap:b"))
    for (std::uint64_t at = 0; at < extent.length && extent.type == 1; at += 4096)
      dirty.insert((extent.offset + at) / 4096);
  std::set<std::uint64_t> written;
  const std::vector<std::string> record = sim_.record();
  for (std::size_t i = before; i < record.size(); ++i) {
    std::istringstream line(record[i]);
    std::string time;
    std::string what;
    std::uint64_t disk = 0;
    std::uint64_t granule = 0;
    line >> time >> what >> disk >> granule;
    if (what == "write" || what == "zero")
      written.insert(granule);
  }
  EXPECT_GT(written.size(), 30U);
  EXPECT_EQ(dirty, written);

  EXPECT_THAT(run_ok({"nbdinfo", "--list", uri}), HasSubstr("qemu:dirty-bitmap:b"));
  // All of the disk, in structured replies; then in simple ones.
  run_ok({"nbdcopy", "--no-extents", uri, sim_.copy("copy.raw")});
  EXPECT_EQ(difference(sim_.copy("copy.raw"), "raw", uri, "raw"), "");
  // Debian's own Python has libnbd.
  run_ok({"/usr/bin/python3", "-m", "nbd", "-c",
          fmt::format("h.set_request_structured_replies(False)\n"
                      "h.connect_uri('{}')\n"
                      "assert not h.get_structured_replies_negotiated()\n"
                      "open('{}', 'wb').write(h.pread(h.get_size(), 0))\n",
                      uri, sim_.copy("simple.raw"))});
  for (const char* copy : {"copy.raw", "simple.raw"})
    EXPECT_THAT(sim_.check({"vda=" + sim_.copy(copy)}).out, HasSubstr("exact: the end")) << copy;

  expect_done(ask(*socket, R"({"execute": "nbd-server-stop"})"));
  EXPECT_FALSE(std::filesystem::exists(nbd));
  EXPECT_FALSE(run({"nbdinfo", uri}).ok());
}

/// With a client connected, an export ends after the answer.
TEST_F(LiveSockets, AnExportInUseEndsLater) {
  auto socket = negotiated(qmp());
  const std::string nbd = sim_.guest() + "/nbd.sock";
  expect_done(ask(*socket, fmt::format(R"({{"execute": "nbd-server-start", "arguments":
      {{"addr": {{"type": "unix", "data": {{"path": "{}"}}}}}}}})",
                                       nbd)));
  expect_done(ask(*socket, R"({"execute": "block-dirty-bitmap-add", "arguments":
      {"node": "vda", "name": "b", "disabled": true}})"));
  expect_done(ask(*socket, R"({"execute": "block-export-add", "arguments": {"type": "nbd",
      "id": "e", "node-name": "vda", "name": "disk", "bitmaps": ["b"]}})"));
  const auto exports = [&] { return ask(*socket, R"({"execute": "query-block-exports"})"); };
  const auto remove = [&](const std::string& mode) {
    return ask(*socket, fmt::format(R"({{"execute": "block-export-del",
        "arguments": {{"id": "e", "mode": "{}"}}}})",
                                    mode));
  };
  Background client({"/usr/bin/python3", "-m", "nbd", "-c",
                     fmt::format("h.connect_uri('nbd+unix:///disk?socket={}')\nopen('{}', 'w')\n"
                                 "try:\n  while True: h.pread(512, 0)\nexcept nbd.Error: pass\n",
                                 nbd, sim_.copy("connected"))});
  while (!std::filesystem::exists(sim_.copy("connected")) && client.running())
    std::this_thread::sleep_for(5ms);

  EXPECT_EQ(remove("safe").at_pointer("/error/desc").as_string(), "export 'e' still in use");
  socket->send(R"({"execute": "block-export-del", "arguments": {"id": "e", "mode": "hard"}})"
               "\n");
  EXPECT_THAT(socket->read_line(kPatience), HasSubstr("\"return\""));
  EXPECT_THAT(socket->read_line(kPatience), HasSubstr("BLOCK_EXPORT_DELETED"));
  EXPECT_TRUE(exports().at("return").as_array().empty());
  EXPECT_TRUE(client.wait(kPatience));
}

/// QEMU's locks keep it from opening twice what it writes to.
TEST_F(LiveSockets, WhatANodeWritesToIsOpenedByNoOther) {
  auto socket = negotiated(qmp());
  const auto open = [&](const std::string& more) {
    const json::value answer = ask(*socket, fmt::format(R"({{"execute": "blockdev-add",
        "arguments": {{"driver": "raw", "node-name": "again"{},
                       "file": {{"driver": "file", "filename": "{}/vda.raw"}}}}}})",
                                                        more, sim_.guest()));
    const json::value* error = answer.as_object().if_contains("error");
    return error == nullptr ? std::string() : std::string(error->at("desc").as_string());
  };
  EXPECT_EQ(open(""), "Failed to get \"write\" lock");
  EXPECT_EQ(open(R"(, "read-only": true)"), "Failed to get shared \"write\" lock");
}

TEST_F(LiveSockets, AnNbdServerThatCannotListenIsRefused) {
  auto socket = negotiated(qmp());
  const json::value answer = ask(*socket, R"({"execute": "nbd-server-start", "arguments":
      {"addr": {"type": "unix", "data": {"path": "/nowhere/nbd.sock"}}}})");
  EXPECT_THAT(std::string(answer.at_pointer("/error/desc").as_string()),
              HasSubstr("Failed to bind socket to /nowhere/nbd.sock"));
}

}  // namespace
}  // namespace nbdelta::testing
