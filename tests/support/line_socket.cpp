#include "tests/support/line_socket.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.hpp"

namespace nbdelta::testing {

LineSocket::LineSocket(const std::string& path)
    : path_(path), fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path))
    fail(ENAMETOOLONG, "{}: too long for a Unix socket", path);
  std::copy(path.begin(), path.end(), address.sun_path);
  if (!fd_ ||
      ::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    fail_errno("{}: cannot connect", path);
}

void LineSocket::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0)
      fail_errno("{}: cannot send", path_);
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
}

std::string LineSocket::read_line(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    if (const std::size_t end = received_.find('\n'); end != std::string::npos) {
      std::string line = received_.substr(0, end);
      received_.erase(0, end + 1);
      return line;
    }
    const auto left = std::max(
        std::chrono::milliseconds(0),
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()));
    struct pollfd waiting {
      fd_.get(), POLLIN, 0
    };
    if (::poll(&waiting, 1, static_cast<int>(left.count())) == 0)
      fail(ETIMEDOUT, "{}: no line within {} ms", path_, timeout.count());
    char bytes[4096];
    const ssize_t count = ::recv(fd_.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (count == 0)
      fail(EPIPE, "{}: the other side has closed the connection", path_);
    if (count > 0)
      received_.append(bytes, static_cast<std::size_t>(count));
    else if (errno != EAGAIN && errno != EINTR)
      fail_errno("{}: cannot receive", path_);
  }
}

}  // namespace nbdelta::testing
