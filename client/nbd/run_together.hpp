#pragma once

#include <exception>
#include <utility>
#include <vector>

#include "client/asio.hpp"

namespace nbdelta::client::nbd {

/// Runs the coroutines on the loop, in this thread, until all of them have ended; then throws the
/// first exception that one of them ended with. Nothing outlives the call.
inline void run_together(asio::io_context& loop, std::vector<asio::awaitable<void>> tasks) {
  std::size_t running = tasks.size();
  std::exception_ptr first;
  loop.restart();
  for (asio::awaitable<void>& task : tasks)
    asio::co_spawn(loop, std::move(task), [&](const std::exception_ptr& exception) {
      if (exception && !first)
        first = exception;
      if (--running == 0)
        loop.stop();
    });
  if (running != 0)
    loop.run();
  if (first)
    std::rethrow_exception(first);
}

inline void run_one(asio::io_context& loop, asio::awaitable<void> task) {
  std::vector<asio::awaitable<void>> tasks;
  tasks.push_back(std::move(task));
  run_together(loop, std::move(tasks));
}

}  // namespace nbdelta::client::nbd
