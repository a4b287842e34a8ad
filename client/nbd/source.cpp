#include "client/nbd/source.hpp"

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <utility>

#include "client/nbd/run_together.hpp"

namespace nbdelta::client::nbd {
namespace {

template <class... Args>
[[noreturn]] void differ(fmt::format_string<Args...> format, Args&&... args) {
  throw OtherExport(EPROTO, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace

std::chrono::milliseconds RetryPolicy::pause(unsigned attempt) const {
  constexpr unsigned kMostDoublings = 20;
  return std::min(longest_pause, first_pause * (1U << std::min(attempt, kMostDoublings)));
}

Source::Source(ConnectOptions options, RetryPolicy policy, std::stop_token stop)
    : Source(Known{.options = std::move(options), .exported = {}, .packed = {}, .view = {}}, policy,
             std::move(stop)) {}

Source::Source(Known known, RetryPolicy policy, std::stop_token stop)
    : known_(std::move(known)), policy_(policy), stop_(std::move(stop)) {}

Source::~Source() {
  if (connection_)
    connection_->disconnect();
}

void Source::connect(const std::stop_token& give_up) {
  if (!known_.packed) {
    connect_once(give_up);
    return;
  }
  try {
    connect_once(give_up);
    if (read_packed_layout(give_up) == known_.packed)
      return;
  } catch (const ConnectionLost&) {
    throw;
  } catch (const Error& error) {
    if (error.error_number() == ECANCELED)
      throw;
  }
  connection_->disconnect();
  be_the_view_again();  // which has the same bytes, whatever the map, or is refused
  connect_once(give_up);
}

void Source::connect_once(const std::stop_token& give_up) {
  auto fresh = Connection::make(loop_, known_.options);
  connection_ = fresh;
  std::vector<asio::awaitable<void>> tasks;
  tasks.push_back(fresh->connect());
  run(std::move(tasks), give_up);
  if (known_.exported)
    check_same();
  else
    known_.exported = fresh->negotiated();
}

void Source::run(std::vector<asio::awaitable<void>> tasks, const std::stop_token& give_up) {
  const auto give_in = [this] {
    asio::post(loop_, [connection = connection_] { connection->lose_soon("interrupted"); });
  };
  const std::stop_callback on_stop(stop_, give_in);
  const std::stop_callback on_give_up(give_up, give_in);
  try {
    run_together(loop_, std::move(tasks));
  } catch (const ConnectionLost&) {
    if (stop_.stop_requested() || give_up.stop_requested())
      fail(ECANCELED, "interrupted");
    throw;
  }
}

void Source::reconnect(const ConnectionLost& why) {
  ConnectionLost last = why;
  while (attempts_ < policy_.attempts) {
    pause();
    ++attempts_;
    try {
      connect();
      return;
    } catch (const ConnectionLost& again) {
      last = again;
    }
  }
  if (policy_.attempts == 0)
    throw last;
  fail(last.error_number(), "{} (gave up after {} attempts to connect again; see --retries)",
       last.what(), policy_.attempts);
}

void Source::pause() {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  never.wait_for(lock, stop_, policy_.pause(attempts_), [] { return false; });
  if (stop_.stop_requested())
    fail(ECANCELED, "interrupted");
}

void Source::check_same() const {
  const Export& now = connection_->negotiated();
  const Export& known = *known_.exported;
  if (now.size != known.size)
    differ("{}: the export is another one since the first connection: it has {} bytes, and had {}",
           options().uri, now.size, known.size);
  if (now.changed_view != known.changed_view || now.has_bitmap != known.has_bitmap ||
      now.packed != known.packed)
    differ("{}: the export is another one since the first connection: another view of the disk",
           options().uri);
  if (now.description != known.description)
    differ(
        "{}: the export is another one since the first connection: it is '{}', and was '{}'; what "
        "was copied so far does not belong to that: start again",
        options().uri, now.description, known.description);
  if (now.minimum_block > known.minimum_block || now.maximum_block < known.maximum_block)
    differ("{}: the export is another one since the first connection: it has other block sizes",
           options().uri);
}

}  // namespace nbdelta::client::nbd
