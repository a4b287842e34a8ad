#pragma once

#include <boost/asio/local/stream_protocol.hpp>
#include <functional>
#include <memory>
#include <string>

#include "client/asio.hpp"
#include "client/qmp/channel.hpp"

namespace nbdelta::sim {

namespace asio = boost::asio;

/// Listens on a Unix socket, in the place of whatever was there; its file goes with the object. For
/// one thread.
class UnixServer {
 public:
  using Socket = asio::local::stream_protocol::socket;

  /// Throws Error with the path. `backlog` + 1 clients may wait to be accepted (listen(2)).
  UnixServer(asio::any_io_executor executor, const std::string& path, int backlog);
  UnixServer(const UnixServer&) = delete;
  UnixServer& operator=(const UnixServer&) = delete;
  ~UnixServer();

  asio::awaitable<Socket> accept();
  /// Whoever waits for a client is cancelled; the file goes.
  void close();

 private:
  std::string path_;
  asio::local::stream_protocol::acceptor acceptor_;
};

/// As a character device of QEMU ("-chardev socket,server=on"): one client after the other; whoever
/// comes meanwhile waits in the socket's queue. `serve` returns when its client has gone. Does not
/// end by itself.
asio::awaitable<void> serve_one_by_one(
    UnixServer& server, std::string name,
    std::function<asio::awaitable<void>(std::unique_ptr<client::qmp::Channel>)> serve);

}  // namespace nbdelta::sim
