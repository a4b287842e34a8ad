// A connection that breaks costs what was in flight, and nothing else.

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "client/nbd/source.hpp"
#include "tests/client/client_run.hpp"
#include "tests/client/scripted_server.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using Next = ScriptedServer::Next;
using Request = ScriptedServer::Request;
using Session = ScriptedServer::Session;
using Type = ScriptedServer::Type;
using std::chrono::milliseconds;

/// Whether the file holds the disk of a ScriptedServer.
bool holds_the_disk(const std::string& path, std::uint64_t size) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() != size)
    return false;
  for (std::uint64_t i = 0; i < size; ++i)
    if (static_cast<std::byte>(bytes[i]) != ScriptedServer::disk_byte(i))
      return false;
  return true;
}

constexpr std::uint64_t kDisk = 4 * kMiB;

ScriptedServer::Script disk_script() {
  ScriptedServer::Script script;
  script.size = [](unsigned) { return kDisk; };
  return script;
}

TEST(RetryPolicy, PausesDoubleUpToTheLongest) {
  const client::nbd::RetryPolicy policy;
  EXPECT_EQ(policy.pause(0), milliseconds(100));
  EXPECT_EQ(policy.pause(1), milliseconds(200));
  EXPECT_EQ(policy.pause(6), milliseconds(6400));
  EXPECT_EQ(policy.pause(7), milliseconds(10'000));
  EXPECT_EQ(policy.pause(4'000'000'000U), milliseconds(10'000));
}

TEST(Retry, ConnectionThatClosesInTheMiddle) {
  ScriptedServer::Script script = disk_script();
  script.on_request = [](const Session&, const Request& request) {
    return request.type == Type::read && request.connection < 3 && request.number >= 4
               ? Next::close
               : Next::usual;
  };
  const ScriptedServer server(script);
  const TempFolder folder;
  const auto result = pulled({server.uri(), folder / "disk.raw"});
  EXPECT_TRUE(holds_the_disk(folder / "disk.raw", kDisk));
  EXPECT_GE(result.at("retries").to_number<int>(), 1);
  EXPECT_EQ(result.at("bytes_written").to_number<std::uint64_t>(), kDisk);
}

TEST(Retry, ConnectionThatClosesInTheMiddleOfAReply) {
  ScriptedServer::Script script = disk_script();
  script.on_request = [](const Session& session, const Request& request) {
    if (request.type != Type::read || request.connection != 0 || request.offset < kMiB)
      return Next::usual;
    session.reply_cut(request, 100'000);
    return Next::close;
  };
  const ScriptedServer server(script);
  const TempFolder folder;
  pulled({server.uri(), folder / "disk.raw"});
  EXPECT_TRUE(holds_the_disk(folder / "disk.raw", kDisk));
}

TEST(Retry, ConnectionThatGoesSilent) {
  ScriptedServer::Script script = disk_script();
  script.on_request = [](const Session&, const Request& request) {
    return request.type == Type::read && request.connection == 0 && request.number > 5
               ? Next::handled
               : Next::usual;
  };
  const ScriptedServer server(script);
  const TempFolder folder;
  pulled({server.uri(), folder / "disk.raw", "--timeout", "0.5"});
  EXPECT_TRUE(holds_the_disk(folder / "disk.raw", kDisk));
}

TEST(Retry, MapIsReadOn) {
  ScriptedServer::Script script = disk_script();
  script.size = [](unsigned) { return 100 * kGiB; };
  script.on_request = [](const Session& session, const Request& request) {
    if (request.connection == 0 && request.number > 20)
      return Next::close;
    session.reply_status(request, 0, {{request.length, 3}});
    return Next::handled;
  };
  const ScriptedServer server(script);
  const Outcome outcome = nbdelta({"map", server.uri()});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("107374182400  hole"), std::string::npos) << outcome.out;
}

TEST(Retry, GivesUpAfterAttemptsWithoutProgress) {
  ScriptedServer::Script script = disk_script();
  script.on_request = [](const Session&, const Request& request) {
    return request.type == Type::read ? Next::close : Next::usual;
  };
  const ScriptedServer server(script);
  const TempFolder folder;
  const Outcome outcome =
      nbdelta({"pull", server.uri(), folder / "disk.raw", "--retries", "2", "--connections", "1"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("gave up after 2 attempts"), std::string::npos) << outcome.err;
  EXPECT_EQ(server.connections(), 3U);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

/// A lost connection must not hide what no new connection mends.
TEST(Retry, LossBesideAnErrorOfTheTargetNamesTheError) {
  ScriptedServer::Script script = disk_script();
  script.on_request = [](const Session&, const Request& request) {
    if (request.type != Type::read || request.number < 2)
      return Next::usual;
    std::this_thread::sleep_for(milliseconds(100));  // the first data is being written
    return Next::close;
  };
  ScriptedServer::Script target = disk_script();
  target.read_only = false;
  target.on_request = [](const Session& session, const Request& request) {
    if (request.type != Type::write)
      return Next::usual;
    std::this_thread::sleep_for(milliseconds(500));
    constexpr std::uint32_t kNoSpace = 28;  // NBD protocol, "Error values"
    session.reply_error(request, kNoSpace);
    return Next::handled;
  };
  const ScriptedServer server(script);
  const ScriptedServer to(target);
  const Outcome outcome = nbdelta({"pull", server.uri(), to.uri(), "--connections", "1"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("No space left on device"), std::string::npos) << outcome.err;
}

TEST(Retry, ProgressStartsTheCountAnew) {
  ScriptedServer::Script script = disk_script();
  script.on_request = [](const Session&, const Request& request) {
    return request.number >= 3 ? Next::close : Next::usual;  // two or three reads a connection
  };
  const ScriptedServer server(script);
  const TempFolder folder;
  const auto result =
      pulled({server.uri(), folder / "disk.raw", "--retries", "1", "--connections", "1"});
  EXPECT_TRUE(holds_the_disk(folder / "disk.raw", kDisk));
  EXPECT_GE(result.at("retries").to_number<int>(), 4);
}

TEST(Retry, OtherSizeAfterwardsIsAnError) {
  ScriptedServer::Script script = disk_script();
  script.size = [](unsigned connection) { return connection == 0 ? kDisk : 2 * kDisk; };
  script.on_request = [](const Session&, const Request& request) {
    return request.type == Type::read ? Next::close : Next::usual;
  };
  const ScriptedServer server(script);
  const Outcome outcome = nbdelta({"pull", server.uri(), "null:", "--connections", "1"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find(
                "another one since the first connection: it has 8388608 bytes, and had 4194304"),
            std::string::npos)
      << outcome.err;
}

TEST(Retry, SecondConnectionOfAnotherSizeIsAnError) {
  ScriptedServer::Script script = disk_script();
  script.size = [](unsigned connection) { return connection == 0 ? kDisk : 2 * kDisk; };
  script.on_request = [](const Session&, const Request& request) {
    if (request.type == Type::read)
      std::this_thread::sleep_for(milliseconds(20));
    return Next::usual;
  };
  const ScriptedServer server(script);
  const Outcome outcome = nbdelta({"pull", server.uri(), "null:"});
  EXPECT_EQ(outcome.status, 1) << outcome.err;
}

TEST(Retry, ServerThatTakesOneConnectionOnlyIsEnough) {
  ScriptedServer::Script script = disk_script();
  script.mute = [](unsigned connection) { return connection > 0; };
  const ScriptedServer server(script);
  const TempFolder folder;
  const auto start = std::chrono::steady_clock::now();
  const auto result = pulled({server.uri(), folder / "disk.raw"});
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(20'000));
  EXPECT_TRUE(holds_the_disk(folder / "disk.raw", kDisk));
  EXPECT_EQ(result.at("connections").to_number<int>(), 1);
}

/// As before, but the server says so.
TEST(Retry, ServerThatRefusesFurtherConnectionsIsEnough) {
  const NbdServer server = NbdServer::nbdkit("pattern", {"10M", "limit=2"}, {"--filter=limit"});
  const auto result = pulled({server.uri(), "null:", "--connections", "4", "--rate", "20M"});
  EXPECT_EQ(result.at("bytes_written").to_number<std::uint64_t>(), 10 * kMiB);
  EXPECT_EQ(result.at("connections").to_number<int>(), 2);
}

/// What nobody listens on.
unsigned free_port() {
  const FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* any = reinterpret_cast<sockaddr*>(&address);
  if (::bind(socket.get(), any, length) != 0 || ::getsockname(socket.get(), any, &length) != 0)
    fail_errno("a port of this machine");
  return ntohs(address.sin_port);
}

enum class Transport : std::uint8_t { unix_socket, tcp, tls };

/// nbdkit, killed in the middle and started again at the same place.
class KilledServer : public ::testing::TestWithParam<Transport> {
 protected:
  KilledServer() {
    run_ok({"dd", "if=/dev/urandom", "of=" + image_, "bs=1M", "count=64", "status=none"});
    if (GetParam() == Transport::tls)
      run_ok({"psktool", "-u", "alice", "-p", keys_});
  }

  std::string uri() const {
    if (GetParam() == Transport::unix_socket)
      return "nbd+unix:///?socket=" + socket_;
    if (GetParam() == Transport::tcp)
      return fmt::format("nbd://127.0.0.1:{}/", port_);
    return fmt::format("nbds://alice@127.0.0.1:{}/?tls-psk-file={}", port_, keys_);
  }

  /// Listens when this returns.
  Background serve() const {
    std::filesystem::remove(socket_);
    std::filesystem::remove(pid_file_);
    Command command = joined(nbdkit_command(), {"-f", "-P", pid_file_, "--filter=rate"});
    if (GetParam() == Transport::unix_socket)
      command = joined(command, {"-U", socket_});
    else
      command = joined(command, {"-i", "127.0.0.1", "-p", std::to_string(port_)});
    if (GetParam() == Transport::tls)
      command = joined(command, {"--tls=require", "--tls-psk=" + keys_});
    Background server(joined(command, {"file", image_, "rate=200M"}));
    while (!std::filesystem::exists(pid_file_) && server.running())
      std::this_thread::sleep_for(milliseconds(5));
    return server;
  }

  /// Returns once the client has been connected, and has begun to write.
  void await_copy(Background& client) const {
    while (!std::filesystem::exists(folder_ / "copy.raw.partial") && client.running())
      std::this_thread::sleep_for(milliseconds(5));
    std::this_thread::sleep_for(milliseconds(300));
    EXPECT_TRUE(client.running()) << client.err();
  }

  void kill(Background& server) const {
    server.signal(SIGKILL);
    server.wait(milliseconds(5000));
    std::filesystem::remove(socket_);
  }

  const TempFolder folder_;
  const std::string image_ = folder_ / "disk.raw";
  const std::string socket_ = folder_ / "socket";
  const std::string pid_file_ = folder_ / "pid";
  const std::string keys_ = folder_ / "keys.psk";
  const unsigned port_ = free_port();
};

TEST_P(KilledServer, IsConnectedToOnceItIsBack) {
  Background first = serve();
  Background client(nbdelta_command({"pull", "--json", uri(), folder_ / "copy.raw"}));
  await_copy(client);
  kill(first);
  std::this_thread::sleep_for(milliseconds(400));  // the first attempts find nobody
  EXPECT_TRUE(client.running()) << client.err();
  const Background second = serve();
  const auto outcome = client.wait(milliseconds(60'000));
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status, 0) << outcome->err;
  run_ok({"cmp", image_, folder_ / "copy.raw"});
  EXPECT_GE(boost::json::parse(outcome->out).at("retries").to_number<int>(), 1);
}

TEST_P(KilledServer, IsGivenUpInTheEnd) {
  Background server = serve();
  Background client(
      nbdelta_command({"pull", uri(), folder_ / "copy.raw", "--quiet", "--retries", "2"}));
  await_copy(client);
  kill(server);
  const auto outcome = client.wait(milliseconds(60'000));
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status, 1);
  EXPECT_NE(outcome->err.find("gave up after 2 attempts"), std::string::npos) << outcome->err;
}

/// Retries are for what was there before.
TEST_P(KilledServer, ThatNeverWasIsAnErrorAtOnce) {
  const auto start = std::chrono::steady_clock::now();
  const Outcome outcome = nbdelta({"pull", uri(), folder_ / "copy.raw", "--retries", "1000"});
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(20'000));
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find(uri()), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find("gave up"), std::string::npos) << outcome.err;
}

INSTANTIATE_TEST_SUITE_P(Retry, KilledServer,
                         ::testing::Values(Transport::unix_socket, Transport::tcp, Transport::tls),
                         [](const auto& row) {
                           switch (row.param) {
                             case Transport::unix_socket:
                               return "UnixSocket";
                             case Transport::tcp:
                               return "Tcp";
                             default:
                               return "Tls";
                           }
                         });

/// A name that no address is found for is known only by then.
TEST(Retry, WrongUriIsAnErrorAtOnce) {
  for (const std::string uri : {"nbd://no-such-host.invalid/", "nbd+unix:///", "nbd://[/"}) {
    const Outcome outcome = nbdelta({"pull", uri, "null:", "--retries", "1000"});
    EXPECT_EQ(outcome.status, 1) << uri;
    EXPECT_NE(outcome.err.find("nbdelta: " + uri + ": "), std::string::npos) << outcome.err;
  }
}

}  // namespace
}  // namespace nbdelta::testing
