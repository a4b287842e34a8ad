#include "client/qmp/socket_channel.hpp"

#include <sys/un.h>

#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/write.hpp>
#include <charconv>
#include <string_view>
#include <utility>

namespace nbdelta::client::qmp {
namespace {

using Socket = asio::generic::stream_protocol::socket;

class SocketChannel final : public Channel {
 public:
  SocketChannel(Socket socket, std::string name)
      : socket_(std::move(socket)), name_(std::move(name)) {}

  const std::string& name() const override { return name_; }

  asio::awaitable<void> send(std::string bytes) override {
    try {
      co_await asio::async_write(socket_, asio::buffer(bytes), asio::use_awaitable);
    } catch (const boost::system::system_error& error) {
      lost(error);
    }
  }

  asio::awaitable<std::string> receive() override {
    try {
      const std::size_t count =
          co_await socket_.async_read_some(asio::buffer(buffer_), asio::use_awaitable);
      co_return std::string(buffer_.data(), count);
    } catch (const boost::system::system_error& error) {
      lost(error);
    }
  }

 private:
  [[noreturn]] void lost(const boost::system::system_error& error) const {
    if (error.code() == asio::error::operation_aborted)
      throw error;
    if (error.code() == asio::error::eof)
      throw ChannelLost(ECONNRESET, name_ + ": the other end has closed the connection");
    throw ChannelLost(ECONNRESET, name_ + ": " + error.code().message());
  }

  Socket socket_;
  std::string name_;
  std::array<char, 16384> buffer_;
};

bool is_path(std::string_view address) {
  return address.find('/') != std::string_view::npos || address.find(':') == std::string_view::npos;
}

asio::awaitable<Socket> connect_path(std::string path, std::string name) {
  if (path.size() >= sizeof(sockaddr_un::sun_path))
    fail(ENAMETOOLONG, "{}: a Unix socket's path has at most {} bytes", name,
         sizeof(sockaddr_un::sun_path) - 1);
  asio::local::stream_protocol::socket socket(co_await asio::this_coro::executor);
  co_await socket.async_connect(asio::local::stream_protocol::endpoint(path), asio::use_awaitable);
  // connect(2) says EAGAIN where the server's queue is full, which Asio takes for EINPROGRESS.
  boost::system::error_code not_connected;
  socket.remote_endpoint(not_connected);
  if (not_connected)
    fail(EAGAIN, "{}: takes no more connections: others wait for it already", name);
  co_return Socket(std::move(socket));
}

asio::awaitable<Socket> connect_host(std::string address) {
  const std::size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']'))
    host = host.substr(1, host.size() - 2);
  const auto executor = co_await asio::this_coro::executor;
  asio::ip::tcp::resolver resolver(executor);
  const auto found =
      co_await resolver.async_resolve(host, address.substr(colon + 1), asio::use_awaitable);
  asio::ip::tcp::socket socket(executor);
  co_await asio::async_connect(socket, found, asio::use_awaitable);
  socket.set_option(asio::ip::tcp::no_delay(true));
  co_return Socket(std::move(socket));
}

asio::awaitable<Socket> connect_either(const std::string& address, const std::string& name) {
  if (is_path(address))
    return connect_path(address, name);
  const std::string port = address.substr(address.rfind(':') + 1);
  unsigned number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc() || end != port.data() + port.size() || number == 0 || number > 65535)
    fail(EINVAL, "{}: a port is a number from 1 to 65535", name);
  return connect_host(address);
}

}  // namespace

asio::awaitable<std::unique_ptr<Channel>> connect(std::string address, std::string what,
                                                  Clock& clock, Clock::Time deadline) {
  std::string name = what + " at " + address;
  try {
    asio::awaitable<Socket> attempt = connect_either(address, name);
    Socket socket = co_await before(clock, deadline, std::move(attempt),
                                    name + ": does not take the connection");
    co_return std::make_unique<SocketChannel>(std::move(socket), std::move(name));
  } catch (const boost::system::system_error& error) {
    fail(error.code().category() == boost::system::system_category() ? error.code().value()
                                                                     : EHOSTUNREACH,
         "{}: {}", name, error.code().message());
  }
}

std::unique_ptr<Channel> adopt_socket(const asio::any_io_executor& executor, FileDescriptor fd,
                                      std::string name) {
  Socket socket(executor, asio::generic::stream_protocol(AF_UNIX, 0), fd.release());
  return std::make_unique<SocketChannel>(std::move(socket), std::move(name));
}

}  // namespace nbdelta::client::qmp
