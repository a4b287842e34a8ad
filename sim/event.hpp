#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "client/asio.hpp"

namespace nbdelta::sim {

namespace asio = boost::asio;

/// Coroutines wait for something to change, and look again then. Cannot be cancelled. For one
/// thread, and to be dropped before the executor of those who wait is gone.
class Event {
 public:
  explicit Event(asio::any_io_executor executor) : executor_(std::move(executor)) {}

  asio::awaitable<void> wait() {
    // Named, for GCC 12.
    const auto start = [this](auto handler) {
      waiting_.push_back(std::make_unique<Handler>(std::move(handler)));
    };
    co_await asio::async_initiate<const asio::use_awaitable_t<>, void()>(start,
                                                                         asio::use_awaitable);
  }

  /// All who wait go on, later.
  void notify() {
    for (std::unique_ptr<Handler>& handler : std::exchange(waiting_, {}))
      asio::post(executor_, [handler = std::move(handler)]() mutable { std::move (*handler)(); });
  }

  /// Those who wait end where they are.
  void drop() { std::exchange(waiting_, {}).clear(); }

 private:
  using Handler = asio::any_completion_handler<void()>;
  asio::any_io_executor executor_;
  std::vector<std::unique_ptr<Handler>> waiting_;
};

}  // namespace nbdelta::sim
