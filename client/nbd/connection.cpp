#include "client/nbd/connection.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "client/nbd/status_collector.hpp"

namespace nbdelta::client::nbd {
namespace {

using Wait = asio::posix::stream_descriptor::wait_type;

constexpr std::chrono::milliseconds kPatience{300};

/// Counts the bytes of a read that the server really sent: it might leave some out, and what the
/// buffer held before would be taken for them.
int count_chunk(void* seen, const void* /*data*/, std::size_t count, std::uint64_t /*offset*/,
                unsigned status, int* /*error*/) {
  if (status == LIBNBD_READ_DATA || status == LIBNBD_READ_HOLE)
    *static_cast<std::uint64_t*>(seen) += count;
  return 0;
}

}  // namespace

/// What libnbd calls back with when a command has ended. It holds its lock meanwhile, so nothing of
/// libnbd may be called here; deliver() does the rest.
struct Connection::Completion {
  Connection* connection;
  std::uint64_t id;

  static int on_completed(void* self, int* error) {
    const auto* completion = static_cast<Completion*>(self);
    // Has room: perform() reserved it.
    completion->connection->done_.push_back({completion->id, *error});
    return 1;  // libnbd need not keep the command
  }
  static void destroy(void* self) { delete static_cast<Completion*>(self); }
  static nbd_completion_callback make(Connection* connection, std::uint64_t id) {
    return {.callback = on_completed, .user_data = new Completion{connection, id}, .free = destroy};
  }
};

std::string libnbd_error() {
  const char* text = nbd_get_error();
  std::string_view message(text == nullptr ? "no reason given" : text);
  const std::size_t colon = message.find(": ");  // after the function's name
  if (message.starts_with("nbd_") && colon != std::string_view::npos)
    message.remove_prefix(colon + 2);
  return std::string(message);
}

std::shared_ptr<Connection> Connection::make(asio::io_context& loop, ConnectOptions options) {
  return std::shared_ptr<Connection>(new Connection(loop, std::move(options)));
}

Connection::Connection(asio::io_context& loop, ConnectOptions options)
    : loop_(loop),
      options_(std::move(options)),
      handle_(nbd_create()),
      descriptor_(loop),
      patience_(loop),
      watchdog_(loop) {
  if (!handle_)
    fail(ENOMEM, "{}: {}", name(), libnbd_error());
}

/// libnbd completes what is still in flight when a handle is closed (1.16 and later do), and its
/// callbacks need the other members.
Connection::~Connection() {
  handle_.reset();
}

/// Issues a command and waits until it has completed; 0 or an errno value. Errors of a lost
/// connection are the caller's to tell (lost()).
asio::awaitable<int> Connection::perform(Issue issue) {
  if (lost())
    fail_lost();
  co_return co_await asio::async_initiate<const asio::use_awaitable_t<>, void(int)>(
      [this, &issue](auto handler) {
        if (!busy())
          last_progress_ = std::chrono::steady_clock::now();
        const std::uint64_t id = next_id_++;
        pending_.emplace(id, std::move(handler));
        done_.reserve(pending_.size() + 1);
        if (issue(Completion::make(this, id)) == -1)
          done_.push_back({id, nbd_get_errno() == 0 ? EIO : nbd_get_errno()});
        arm_watchdog();
        arm();
        if (!done_.empty() && !delivering_)
          asio::post(loop_, [weak = weak_from_this()] {
            if (const auto self = weak.lock())
              self->after_progress();
          });
      },
      asio::use_awaitable);
}

asio::awaitable<void> Connection::read(std::span<std::byte> out, std::uint64_t offset) {
  const Request request{"read", offset, out.size()};
  std::uint64_t seen = 0;
  const int error = co_await perform([&](nbd_completion_callback done) {
    const nbd_chunk_callback chunk{.callback = count_chunk, .user_data = &seen, .free = nullptr};
    return nbd_aio_pread_structured(handle_.get(), out.data(), out.size(), offset, chunk, done, 0);
  });
  if (error != 0)
    fail_request(error, request);
  if (seen != out.size())
    fail(EPROTO, "{}: read of {} bytes at {}: the server sent {} bytes", name(), out.size(), offset,
         seen);
}

asio::awaitable<void> Connection::write(std::span<const std::byte> data, std::uint64_t offset) {
  const Request request{"write", offset, data.size()};
  const int error = co_await perform([&](nbd_completion_callback done) {
    return nbd_aio_pwrite(handle_.get(), data.data(), data.size(), offset, done, 0);
  });
  if (error != 0)
    fail_request(error, request);
}

asio::awaitable<void> Connection::zero(std::uint64_t offset, std::uint64_t length) {
  const Request request{"write of zeros", offset, length};
  const int error = co_await perform([&](nbd_completion_callback done) {
    return nbd_aio_zero(handle_.get(), length, offset, done, 0);
  });
  if (error != 0)
    fail_request(error, request);
}

asio::awaitable<void> Connection::flush() {
  const Request request{"flush", 0, 0};
  const int error = co_await perform(
      [&](nbd_completion_callback done) { return nbd_aio_flush(handle_.get(), done, 0); });
  if (error != 0)
    fail_request(error, request);
}

asio::awaitable<StatusReply> Connection::block_status(std::uint64_t offset, std::uint64_t length) {
  const Request request{"block status", offset, length};
  StatusCollector collector(options_.bitmap_context);
  const int error = co_await perform([&](nbd_completion_callback done) {
    return collector.issue(handle_.get(), offset, length, done);
  });
  if (error != 0)
    fail_request(error, request);
  co_return collector.take();
}

void Connection::fail_request(int error, const Request& request) const {
  if (lost())
    fail_lost();
  fail(error, "{}: {} of {} bytes at {}: the server answered: {}", name(), request.verb,
       request.length, request.offset, std::strerror(error));
}

void Connection::fail_lost() const {
  throw ConnectionLost(ENOTCONN, fmt::format("{}: {}", name(), lost_reason_));
}

void Connection::disconnect() noexcept {
  if (lost() || nbd_aio_is_ready(handle_.get()) <= 0)
    return;
  nbd_aio_disconnect(handle_.get(), 0);  // a failure only means that it is gone already
  lost_reason_ = "disconnected";
}

void Connection::lose(std::string_view reason) {
  if (lost())
    return;
  lost_reason_ = reason.empty() ? "lost" : reason;
  boost::system::error_code ignored;
  descriptor_.close(ignored);
  ++generation_;
  for (const auto& [id, handler] : pending_)
    if (std::none_of(done_.begin(), done_.end(), [&](const Done& d) { return d.id == id; }))
      done_.push_back({id, ENOTCONN});
  asio::post(loop_, [weak = weak_from_this()] {
    if (const auto self = weak.lock())
      self->deliver();
  });
}

void Connection::lose_soon(std::string_view reason) {
  patience_.expires_after(kPatience);
  patience_.async_wait([weak = weak_from_this(),
                        reason = std::string(reason)](const boost::system::error_code& error) {
    const auto self = weak.lock();
    if (self && !error)
      self->lose(reason);
  });
}

/// Follows libnbd from one socket to the next while it tries the addresses of a host.
void Connection::watch_descriptor() {
  const int fd = nbd_aio_get_fd(handle_.get());
  struct stat status {};
  if (fd < 0 || ::fstat(fd, &status) != 0 || status.st_ino == watched_inode_)
    return;
  boost::system::error_code ignored;
  descriptor_.close(ignored);
  ++generation_;
  waiting_read_ = waiting_write_ = false;
  const int duplicate = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (duplicate < 0) {  // nothing may be thrown here: the loop's handlers call this
    lose(std::strerror(errno));
    return;
  }
  descriptor_.assign(duplicate, ignored);
  if (ignored) {
    ::close(duplicate);
    lose(ignored.message());
    return;
  }
  watched_inode_ = status.st_ino;
}

void Connection::arm() {
  if (lost())
    return;
  const unsigned direction = nbd_aio_get_direction(handle_.get());
  if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0 && !std::exchange(waiting_read_, true))
    wait_for(Wait::wait_read);
  if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0 && !std::exchange(waiting_write_, true))
    wait_for(Wait::wait_write);
}

void Connection::wait_for(Wait type) {
  descriptor_.async_wait(type, [weak = weak_from_this(), type,
                                generation = generation_](const boost::system::error_code& error) {
    const auto self = weak.lock();
    if (!self || generation != self->generation_)
      return;
    (type == Wait::wait_read ? self->waiting_read_ : self->waiting_write_) = false;
    if (error)
      self->lose(error.message());
    else
      self->on_ready();
  });
}

/// Asio may report readiness that is over by now, and libnbd 1.14 must not be told what is not
/// true: a read that finds nothing in the middle of a write makes it forget to go on writing. So
/// ask again. libnbd takes what one recv(2) gives, with TLS 16 KiB; the next may be there already.
void Connection::on_ready() {
  if (lost())
    return;
  last_progress_ = std::chrono::steady_clock::now();
  unsigned ready = ready_direction();
  while (ready != 0) {
    const int result = ready == LIBNBD_AIO_DIRECTION_READ ? nbd_aio_notify_read(handle_.get())
                                                          : nbd_aio_notify_write(handle_.get());
    if (result == -1)
      lose(libnbd_error());
    ready = lost() || !done_.empty() ? 0 : ready_direction();
  }
  after_progress();
}

/// Whenever libnbd's state may have moved on.
void Connection::after_progress() {
  const auto keep = shared_from_this();
  notice_loss();
  // An old-style server may have been through with it before anybody waited.
  if (!lost() && (nbd_aio_is_connecting(handle_.get()) > 0 || !descriptor_.is_open()))
    watch_descriptor();
  deliver();
  arm();
}

/// libnbd reports the death of a connection as one more errno of a command.
void Connection::notice_loss() {
  if (lost())
    return;
  if (nbd_aio_is_dead(handle_.get()) > 0)
    lose("the connection broke");
  else if (nbd_aio_is_closed(handle_.get()) > 0)
    lose("the server closed the connection");
}

void Connection::deliver() {
  if (std::exchange(delivering_, true))
    return;
  const auto keep = shared_from_this();
  const auto connected = [this] {
    return connecting_ && (lost() || nbd_aio_is_connecting(handle_.get()) <= 0);
  };
  while (!done_.empty() || connected()) {  // a coroutine that goes on may bring about either
    if (done_.empty()) {
      Handler handler = std::move(*connecting_);
      connecting_.reset();
      std::move(handler)(0);
      continue;
    }
    const Done done = done_.back();
    done_.pop_back();
    if (done.error != 0)
      notice_loss();
    if (auto entry = pending_.extract(done.id))
      std::move(entry.mapped())(done.error);
  }
  delivering_ = false;
}

void Connection::arm_watchdog() {
  if (std::exchange(watching_, true))
    return;
  watchdog_.expires_at(last_progress_ + options_.timeout);
  watchdog_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
    const auto self = weak.lock();
    if (self && !error)
      self->on_watchdog();
  });
}

void Connection::on_watchdog() {
  watching_ = false;
  if (lost() || !busy())
    return;
  const auto now = std::chrono::steady_clock::now();
  if (now < last_progress_ + options_.timeout) {
    arm_watchdog();
  } else if (ready_direction() != 0) {  // it is us who were too busy to look, not the server
    last_progress_ = now;
    arm_watchdog();
  } else {
    lose(fmt::format("no answer for {:.3g} s",
                     std::chrono::duration<double>(options_.timeout).count()));
  }
}

/// One of the directions that libnbd waits for and that is ready; reading goes first. 0: none.
unsigned Connection::ready_direction() const {
  const unsigned direction = nbd_aio_get_direction(handle_.get());
  const bool reads = (direction & LIBNBD_AIO_DIRECTION_READ) != 0;
  const bool writes = (direction & LIBNBD_AIO_DIRECTION_WRITE) != 0;
  pollfd poll{.fd = nbd_aio_get_fd(handle_.get()), .events = 0, .revents = 0};
  poll.events = static_cast<short>((reads ? POLLIN : 0) | (writes ? POLLOUT : 0));
  if (::poll(&poll, 1, 0) <= 0)
    return 0;
  constexpr int kBroken = POLLHUP | POLLERR;  // told by whatever libnbd does next
  if (reads && (poll.revents & (POLLIN | kBroken)) != 0)
    return LIBNBD_AIO_DIRECTION_READ;
  return writes ? LIBNBD_AIO_DIRECTION_WRITE : 0;
}

}  // namespace nbdelta::client::nbd
