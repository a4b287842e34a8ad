#include "tests/client/session/qmp_tap.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/error.hpp"

namespace nbdelta::testing {
namespace {

constexpr int kTick_ms = 20;

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path))
    fail(ENAMETOOLONG, "{}: too long for a Unix socket", path);
  std::copy(path.begin(), path.end(), address.sun_path);
  return address;
}

FileDescriptor new_socket() {
  return FileDescriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

pid_t peer_of(int fd) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
    fail_errno("cannot ask who has connected");
  return peer.pid;
}

/// Returns false where the other end has gone.
bool receive(int fd, std::string& to) {
  char bytes[16384];
  const ssize_t count = ::read(fd, bytes, sizeof bytes);
  if (count > 0)
    to.append(bytes, static_cast<std::size_t>(count));
  return count > 0;
}

bool pass_on(int fd, const std::string& bytes) {
  return ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
         static_cast<ssize_t>(bytes.size());  // a blocking socket takes all
}

}  // namespace

QmpTap::QmpTap(std::string path, std::string qemu, std::function<void(const std::string&)> before)
    : path_(std::move(path)),
      qemu_(std::move(qemu)),
      before_(std::move(before)),
      listener_(new_socket()) {
  const sockaddr_un address = address_of(path_);
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener_.get(), 4) != 0)
    fail_errno("{}", path_);
  thread_ = std::thread([this] { run(); });
}

QmpTap::~QmpTap() {
  ending_ = true;
  thread_.join();
  ::unlink(path_.c_str());
}

void QmpTap::kill_client() {
  if (const pid_t client = std::exchange(client_, 0); client != 0)
    ::kill(client, SIGKILL);
}

void QmpTap::stop_client() {
  if (client_ != 0)
    ::kill(client_, SIGSTOP);
}

void QmpTap::run() {
  while (!ending_) {
    pollfd waiting{listener_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, kTick_ms) <= 0)
      continue;
    const FileDescriptor client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    client_ = peer_of(client.get());
    const FileDescriptor qemu = new_socket();
    const sockaddr_un address = address_of(qemu_);
    if (::connect(qemu.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      serve(client.get(), qemu.get());
  }
}

void QmpTap::serve(int client, int qemu) {
  std::string commands;
  while (!ending_) {
    pollfd ends[] = {{client, POLLIN, 0}, {qemu, POLLIN, 0}};
    if (::poll(ends, 2, kTick_ms) <= 0)
      continue;
    std::string answers;
    if (ends[1].revents != 0 && (!receive(qemu, answers) || !pass_on(client, answers)))
      return;
    if (ends[0].revents != 0 && !receive(client, commands))
      return;
    for (std::size_t end = commands.find('\n'); end != std::string::npos;
         end = commands.find('\n')) {
      const std::string line = commands.substr(0, end + 1);
      commands.erase(0, end + 1);
      before_(line);
      if (client_ == 0 || (!std::exchange(dropped_, false) && !pass_on(qemu, line)))
        return;
    }
  }
}

}  // namespace nbdelta::testing
