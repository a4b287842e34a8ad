// What a broken or hostile server sends is an error that says where, or is made good; never a
// crash, a hang, or a wrong map.

#include <gtest/gtest.h>
#include <libnbd.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/arithmetic.hpp"
#include "client/nbd/map_reader.hpp"
#include "client/nbd/source.hpp"
#include "image/view.hpp"
#include "tests/client/client_run.hpp"
#include "tests/client/scripted_server.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::client {
namespace {

using image::State;
using testing::ScriptedServer;
using Next = ScriptedServer::Next;
using Request = ScriptedServer::Request;
using Session = ScriptedServer::Session;
using Type = ScriptedServer::Type;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr const char* kBitmap = "qemu:dirty-bitmap:b0";

/// What reading the map ends with: the message, or "" and the map.
std::string map_error(const ScriptedServer& server, const std::string& context = {},
                      image::ExtentMap* map = nullptr) {
  try {
    nbd::Source source(
        {.uri = server.uri(), .bitmap_context = context, .timeout = milliseconds(500)},
        {.attempts = 2, .first_pause = milliseconds(1)}, {});
    source.connect();
    image::ExtentMap got = nbd::read_map(source);
    if (map != nullptr)
      *map = std::move(got);
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

ScriptedServer::Script answering_status(
    const std::function<void(const Session&, const Request&)>& answer) {
  ScriptedServer::Script script;
  script.on_request = [answer](const Session& session, const Request& request) {
    if (request.type != Type::block_status)
      return Next::usual;
    answer(session, request);
    return Next::handled;
  };
  return script;
}

struct Nonsense {
  const char* name;
  std::function<void(const Session&, const Request&)> answer;
  const char* message;  // a part of it
};

class BlockStatusNonsense : public ::testing::TestWithParam<Nonsense> {};

/// Newer versions of libnbd (1.16 and later) look at extents themselves: they refuse those that
/// pass the export's end, and leave out what follows an empty one.
#ifdef LIBNBD_HAVE_NBD_BLOCK_STATUS_64
constexpr bool kLibnbdLooks = true;
#else
constexpr bool kLibnbdLooks = false;
#endif

bool refused_by_libnbd(const std::string& message) {
  return kLibnbdLooks && message.find("Protocol error") != std::string::npos;
}

TEST_P(BlockStatusNonsense, IsAnError) {
  const ScriptedServer server(answering_status(GetParam().answer));
  const auto start = steady_clock::now();
  image::ExtentMap map;
  const std::string message = map_error(server, {}, &map);
  if (kLibnbdLooks &&
      message.empty()) {  // libnbd left the nonsense out, and the rest was asked for again
    EXPECT_STREQ(GetParam().name, "empty_entry_later");
    EXPECT_EQ(map.size(), kMiB);
  } else {
    EXPECT_TRUE(message.find(GetParam().message) != std::string::npos || refused_by_libnbd(message))
        << message;
    EXPECT_NE(message.find(server.uri()), std::string::npos) << message;
  }
  EXPECT_LT(steady_clock::now() - start, milliseconds(5000));
}

INSTANTIATE_TEST_SUITE_P(
    Rows, BlockStatusNonsense,
    ::testing::Values(
        Nonsense{"no_entries", [](auto& s, auto& r) { s.reply_status(r, 0, {}); }, ""},
        Nonsense{"done_without_status", [](auto& s, auto& r) { s.chunk(r, 1, 0, {}); }, "0"},
        Nonsense{"empty_entry",
                 [](auto& s, auto& r) {
                   s.reply_status(r, 0, {{0, 0}, {512, 0}});
                 },
                 "0"},
        Nonsense{"empty_entry_later",
                 [](auto& s, auto& r) {
                   s.reply_status(r, 0, {{512, 0}, {0, 0}, {512, 0}});
                 },
                 "0"},
        Nonsense{"same_context_twice",
                 [](auto& s, auto& r) {
                   s.reply_status(r, 0, {{r.length, 0}}, false);
                   s.reply_status(r, 0, {{r.length, 3}});
                 },
                 "twice"},
        Nonsense{"other_context",
                 [](auto& s, auto& r) {
                   s.reply_status(r, 7, {{r.length, 0}});
                 },
                 "0"},
        Nonsense{"cut_payload", [](auto& s, auto& r) { s.chunk(r, 1, 5, std::string(9, '\1')); },
                 ""},
        Nonsense{"server_error", [](auto& s, auto& r) { s.reply_error(r, EIO); },
                 "the server answered: Input/output error"},
        Nonsense{"garbage", [](auto& s, auto&) { s.send(std::string(64, 'x')); }, "gave up"},
        Nonsense{"wrong_cookie",
                 [](auto& s, Request r) {
                   ++r.cookie;
                   s.reply_status(r, 0, {{r.length, 0}});
                 },
                 "gave up"},
        Nonsense{"ends_mid_reply",
                 [](auto& s, auto&) {
                   s.send(std::string("\x66\x8e\x33\xef\x00\x01", 6));
                   throw Error(EPIPE, "closes");
                 },
                 "gave up"},
        Nonsense{"silent", [](auto&, auto&) {}, "no answer for 0.5 s"}),
    [](const auto& param) { return std::string(param.param.name); });

TEST(BlockStatus, LongerThanAskedIsCut) {
  const ScriptedServer server(answering_status([](auto& s, auto& r) {
    s.reply_status(r, 0, {{UINT32_MAX, 3}});
  }));
  image::ExtentMap map;
  const std::string message = map_error(server, {}, &map);
  if (refused_by_libnbd(message))
    return;
  EXPECT_EQ(message, "");
  EXPECT_EQ(map.size(), kMiB);
  EXPECT_EQ(map.bytes(State::hole), kMiB);
}

TEST(BlockStatus, ShorterThanAskedIsAskedOn) {
  auto script = answering_status([](auto& s, auto& r) {
    s.reply_status(r, 0, {{512, r.offset / 512 % 2 == 0 ? 0U : 2U}});
  });
  const ScriptedServer server(script);
  image::ExtentMap map;
  EXPECT_EQ(map_error(server, {}, &map), "");
  EXPECT_EQ(map.size(), kMiB);
  EXPECT_EQ(map.extents(State::data), 1024U);
  EXPECT_EQ(map.extents(State::zero), 1024U);
}

TEST(BlockStatus, HoleWithoutZeroIsDataButInOurViews) {
  auto script = answering_status([](auto& s, auto& r) { s.reply_status(r, 0, {{r.length, 1}}); });
  image::ExtentMap map;
  EXPECT_EQ(map_error(ScriptedServer(script), {}, &map), "");
  EXPECT_EQ(map.bytes(State::data), kMiB);
  script.description = std::string(image::kChangedViewDescription) + "whatever";
  EXPECT_EQ(map_error(ScriptedServer(script), {}, &map), "");
  EXPECT_EQ(map.bytes(State::unchanged), kMiB);
}

TEST(BlockStatus, ContextsMayBeCutAtDifferentPlaces) {
  auto script = answering_status([](auto& s, auto& r) {
    s.reply_status(r, 1, {{4096, 1}, {r.length - 4096, 0}}, false);
    s.reply_status(r, 0, {{2048, 3}, {1024, 0}});
  });
  script.size = [](unsigned) { return 8192; };
  script.contexts = {"base:allocation", kBitmap};
  script.on_request = [inner = script.on_request](const Session& s, const Request& r) {
    return r.type == Type::block_status && r.offset != 0 ? Next::usual : inner(s, r);
  };
  image::ExtentMap map;
  EXPECT_EQ(map_error(ScriptedServer(script), kBitmap, &map), "");
  EXPECT_EQ(map.bytes(State::zero), 2048U);       // changed, reads zero
  EXPECT_EQ(map.bytes(State::data), 1024U);       // changed
  EXPECT_EQ(map.bytes(State::unchanged), 5120U);  // the usual answer of the second request
}

TEST(BlockStatus, BitmapWithoutAnswerIsAnError) {
  auto script = answering_status([](auto& s, auto& r) { s.reply_status(r, 0, {{r.length, 0}}); });
  script.contexts = {"base:allocation", kBitmap};
  EXPECT_NE(map_error(ScriptedServer(script), kBitmap), "");
}

TEST(BlockStatus, PiecesThatSayNothingNewComeToAnEnd) {
  auto script = answering_status([](auto& s, auto& r) { s.reply_status(r, 0, {{1, 0}}); });
  script.size = [](unsigned) { return 16 * kTiB; };
  const ScriptedServer server(script);
  const std::string message = map_error(server);
  EXPECT_NE(message.find("too small pieces"), std::string::npos) << message;
}

TEST(Server, WithoutTheContextIsNamed) {
  const std::string message = map_error(ScriptedServer({}), kBitmap);
  EXPECT_NE(message.find("does not offer the context \"qemu:dirty-bitmap:b0\""), std::string::npos)
      << message;
}

TEST(Server, WithoutAllocationIsAllData) {
  ScriptedServer::Script script;
  script.contexts = {};
  image::ExtentMap map;
  EXPECT_EQ(map_error(ScriptedServer(script), {}, &map), "");
  EXPECT_EQ(map.bytes(State::data), kMiB);
}

TEST(Server, MuteFromTheStartIsLostAfterTheTimeout) {
  ScriptedServer::Script script;
  script.mute = [](unsigned) { return true; };
  const ScriptedServer server(script);
  EXPECT_NE(map_error(server).find("no answer for 0.5 s"), std::string::npos);
}

TEST(Server, ThatSendsLessThanWasReadIsAnError) {
  ScriptedServer::Script script;
  script.on_request = [](const Session& session, const Request& request) {
    if (request.type != Type::read)
      return Next::usual;
    session.reply_part(request, request.length - 512);
    return Next::handled;
  };
  const ScriptedServer server(script);
  const testing::TempFolder folder;
  const testing::Outcome outcome = testing::nbdelta({"pull", server.uri(), folder / "disk.raw"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("the server sent"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("disk.raw.partial was removed"), std::string::npos) << outcome.err;
}

TEST(Server, ErrorReplyEndsThePullAtOnce) {
  ScriptedServer::Script script;
  script.on_request = [](const Session& session, const Request& request) {
    if (request.type != Type::read || request.offset != 512 * kKiB)
      return Next::usual;
    session.reply_error(request, EIO);
    return Next::handled;
  };
  const ScriptedServer server(script);
  const testing::Outcome outcome = testing::nbdelta({"pull", server.uri(), "null:"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("read of 262144 bytes at 524288: the server answered: Input/output"),
            std::string::npos)
      << outcome.err;
  EXPECT_LE(server.connections(), 2U);
}

}  // namespace
}  // namespace nbdelta::client
