#include "tests/client/scripted_server.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/big_endian.hpp"
#include "base/error.hpp"

namespace nbdelta::testing {
namespace {

// NBD protocol.
constexpr std::uint64_t kMagic = 0x4e42444d41474943;
constexpr std::uint64_t kOptionMagic = 0x49484156454f5054;
constexpr std::uint64_t kOptionReplyMagic = 0x3e889045565a9;
constexpr std::uint32_t kRequestMagic = 0x25609513;
constexpr std::uint32_t kChunkMagic = 0x668e33ef;
constexpr std::uint16_t kFixedNewstyle = 1;
constexpr std::uint16_t kNoZeroes = 2;
enum Option : std::uint32_t { kAbort = 2, kInfo = 6, kGo = 7, kStructured = 8, kSetContext = 10 };
constexpr std::uint32_t kAck = 1;
constexpr std::uint32_t kReplyInfo = 3;
constexpr std::uint32_t kReplyContext = 4;
constexpr std::uint32_t kUnsupported = 0x80000001;
constexpr std::uint16_t kInfoExport = 0;
constexpr std::uint16_t kInfoDescription = 2;
constexpr std::uint16_t kHasFlags = 1;
constexpr std::uint16_t kReadOnly = 2;
constexpr std::uint16_t kSendFlush = 1U << 2U;
constexpr std::uint16_t kSendWriteZeroes = 1U << 6U;
constexpr std::uint16_t kMultiConn = 1U << 8U;
constexpr std::uint16_t kDone = 1;
constexpr std::uint16_t kChunkNone = 0;
constexpr std::uint16_t kChunkData = 1;
constexpr std::uint16_t kChunkStatus = 5;
constexpr std::uint16_t kChunkError = 0x8001;

template <class... Parts>
std::string bytes(const Parts&... parts) {
  std::string result;
  const auto add = [&](const auto& part) {
    if constexpr (std::is_convertible_v<decltype(part), std::string_view>) {
      result += std::string_view(part);
    } else {
      const BigEndian<std::decay_t<decltype(part)>> wire(part);
      result.append(reinterpret_cast<const char*>(&wire), sizeof wire);
    }
  };
  (add(parts), ...);
  return result;
}

std::string option_reply(std::uint32_t option, std::uint32_t type,
                         const std::string& payload = {}) {
  return bytes(kOptionReplyMagic, option, type, static_cast<std::uint32_t>(payload.size()),
               payload);
}

std::string chunk_bytes(std::uint64_t cookie, std::uint16_t flags, std::uint16_t type,
                        std::string_view payload) {
  return bytes(kChunkMagic, flags, type, cookie, static_cast<std::uint32_t>(payload.size()),
               payload);
}

std::string disk_bytes(std::uint64_t offset, std::size_t length) {
  std::string data(length, '\0');
  for (std::size_t i = 0; i < length; ++i)
    data[i] = static_cast<char>(ScriptedServer::disk_byte(offset + i));
  return data;
}

}  // namespace

void ScriptedServer::Session::send(std::string_view text) const {
  while (!text.empty()) {
    const ssize_t sent = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
    if (sent <= 0)
      fail(EPIPE, "the client is gone");
    text.remove_prefix(static_cast<std::size_t>(sent));
  }
}

void ScriptedServer::Session::receive(void* out, std::size_t length) const {
  auto* to = static_cast<char*>(out);
  while (length != 0) {
    const ssize_t got = ::recv(fd_, to, length, 0);
    if (got <= 0)
      fail(EPIPE, "the client is gone");
    to += got;
    length -= static_cast<std::size_t>(got);
  }
}

void ScriptedServer::Session::chunk(const Request& request, std::uint16_t flags, std::uint16_t type,
                                    std::string_view payload) const {
  send(chunk_bytes(request.cookie, flags, type, payload));
}

void ScriptedServer::Session::reply_data(const Request& request) const {
  reply_part(request, request.length);
}

void ScriptedServer::Session::reply_part(const Request& request, std::uint32_t length) const {
  chunk(request, kDone, kChunkData, bytes(request.offset, disk_bytes(request.offset, length)));
}

void ScriptedServer::Session::reply_cut(const Request& request, std::size_t sent) const {
  const std::string whole =
      chunk_bytes(request.cookie, kDone, kChunkData,
                  bytes(request.offset, disk_bytes(request.offset, request.length)));
  send(std::string_view(whole).substr(0, sent));
}

void ScriptedServer::Session::reply_error(const Request& request, std::uint32_t error) const {
  chunk(request, kDone, kChunkError, bytes(error, std::uint16_t{0}));
}

void ScriptedServer::Session::reply_status(const Request& request, std::size_t context,
                                           const std::vector<Entry>& entries, bool done) const {
  std::string payload = bytes(static_cast<std::uint32_t>(context + 1));
  for (const Entry& entry : entries)
    payload += bytes(entry.length, entry.flags);
  chunk(request, done ? kDone : std::uint16_t{0}, kChunkStatus, payload);
}

ScriptedServer::ScriptedServer(Script script)
    : script_(std::move(script)),
      socket_path_(folder_ / "socket"),
      listener_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_path_.copy(static_cast<char*>(address.sun_path), sizeof address.sun_path - 1);
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener_.get(), 16) != 0)
    fail_errno("{}", socket_path_);
  acceptor_ = std::jthread([this] { accept_all(); });
}

ScriptedServer::~ScriptedServer() {
  ::shutdown(listener_.get(), SHUT_RDWR);
  acceptor_.join();
  for (const int socket : sockets_)
    ::shutdown(socket, SHUT_RDWR);
  sessions_.clear();
  for (const int socket : sockets_)
    ::close(socket);
}

void ScriptedServer::accept_all() {
  for (;;) {
    const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0)
      return;
    const std::lock_guard guard(mutex_);
    sockets_.push_back(fd);
    sessions_.emplace_back([this, fd, connection = connections_++] { serve(fd, connection); });
  }
}

void ScriptedServer::serve(int fd, unsigned connection) const {
  try {
    const Session session(fd);
    if (!script_.mute(connection) && negotiate(session, connection))
      transmit(session, connection);
    if (script_.mute(connection))
      return;
  } catch (const Error&) {  // the client has gone
  }
  ::shutdown(fd, SHUT_RDWR);
}

bool ScriptedServer::negotiate(const Session& session, unsigned connection) const {
  session.send(bytes(kMagic, kOptionMagic, static_cast<std::uint16_t>(kFixedNewstyle | kNoZeroes)));
  const auto flags = static_cast<std::uint16_t>(
      kHasFlags | kMultiConn | (script_.read_only ? kReadOnly : kSendFlush | kSendWriteZeroes));
  be32 client_flags;
  session.receive(&client_flags, sizeof client_flags);
  for (;;) {
    struct {
      be64 magic;
      be32 option;
      be32 length;
    } header;
    session.receive(&header, sizeof header);
    const std::uint32_t option = header.option;
    std::string payload(header.length, '\0');
    session.receive(payload.data(), payload.size());
    if (option == kStructured) {
      session.send(option_reply(option, kAck));
    } else if (option == kSetContext) {
      for (std::size_t i = 0; i < script_.contexts.size(); ++i)
        if (payload.find(script_.contexts[i]) != std::string::npos)
          session.send(option_reply(option, kReplyContext,
                                    bytes(static_cast<std::uint32_t>(i + 1), script_.contexts[i])));
      session.send(option_reply(option, kAck));
    } else if (option == kInfo || option == kGo) {
      session.send(option_reply(
          option, kReplyInfo, bytes(kInfoExport, std::uint64_t{script_.size(connection)}, flags)));
      if (!script_.description.empty())
        session.send(
            option_reply(option, kReplyInfo, bytes(kInfoDescription, script_.description)));
      session.send(option_reply(option, kAck));
      if (option == kGo)
        return true;
    } else {
      session.send(option_reply(option, option == kAbort ? kAck : kUnsupported));
      if (option == kAbort)
        return false;
    }
  }
}

void ScriptedServer::transmit(const Session& session, unsigned connection) const {
  for (unsigned number = 0;; ++number) {
    struct {
      be32 magic;
      be16 flags;
      be16 type;
      be64 cookie;
      be64 offset;
      be32 length;
    } wire;
    session.receive(&wire, sizeof wire);
    if (wire.magic != kRequestMagic)
      return;
    const Request request{static_cast<Type>(std::uint16_t{wire.type}),
                          wire.cookie,
                          wire.offset,
                          wire.length,
                          connection,
                          number};
    if (request.type == Type::disconnect)
      return;
    std::string written(request.type == Type::write ? request.length : 0, '\0');
    session.receive(written.data(), written.size());
    const Next next = script_.on_request(session, request);
    if (next == Next::close)
      return;
    if (next == Next::handled)
      continue;
    if (request.type == Type::read)
      session.reply_data(request);
    else if (request.type == Type::block_status)
      for (std::size_t i = 0; i < script_.contexts.size(); ++i)
        session.reply_status(request, i, {{request.length, 0}}, i + 1 == script_.contexts.size());
    else
      session.chunk(request, kDone, kChunkNone, {});
  }
}

}  // namespace nbdelta::testing
