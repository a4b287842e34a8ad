#include "sim/unix_server.hpp"

#include <sys/un.h>
#include <unistd.h>

#include <utility>

#include "base/error.hpp"
#include "base/file.hpp"
#include "client/qmp/socket_channel.hpp"

namespace nbdelta::sim {

using Protocol = asio::local::stream_protocol;

UnixServer::UnixServer(asio::any_io_executor executor, const std::string& path, int backlog)
    : path_(path), acceptor_(std::move(executor)) {
  if (path.size() >= sizeof(sockaddr_un::sun_path))
    fail(ENAMETOOLONG, "UNIX socket path '{}' is too long", path);  // QEMU's words
  ::unlink(path.c_str());
  try {
    acceptor_.open(Protocol());
    acceptor_.bind(Protocol::endpoint(path));
    acceptor_.listen(backlog);
  } catch (const boost::system::system_error& error) {
    fail(error.code().value(), "Failed to bind socket to {}: {}", path, error.code().message());
  }
}

UnixServer::~UnixServer() {
  close();
}

void UnixServer::close() {
  if (!acceptor_.is_open())
    return;
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  ::unlink(path_.c_str());
}

asio::awaitable<UnixServer::Socket> UnixServer::accept() {
  return acceptor_.async_accept(asio::use_awaitable);
}

asio::awaitable<void> serve_one_by_one(
    UnixServer& server, std::string name,
    std::function<asio::awaitable<void>(std::unique_ptr<client::qmp::Channel>)> serve) {
  const auto executor = co_await asio::this_coro::executor;
  while (true) {
    UnixServer::Socket socket = co_await server.accept();
    std::unique_ptr<client::qmp::Channel> channel =
        client::qmp::adopt_socket(executor, FileDescriptor(socket.release()), name);
    co_await serve(std::move(channel));
  }
}

}  // namespace nbdelta::sim
