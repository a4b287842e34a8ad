#pragma once

#include <exception>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

namespace nbdelta::client::pull {

/// Runs each in a thread of its own, the first in this one. The first error stops the others,
/// through `stop`, and is thrown once all have ended.
inline void run_threads(const std::vector<std::function<void()>>& bodies, std::stop_source& stop) {
  std::mutex mutex;  // of error
  std::exception_ptr error;
  const auto guarded = [&](const std::function<void()>& body) noexcept {
    try {
      body();
    } catch (...) {
      const std::lock_guard guard(mutex);
      if (!error)
        error = std::current_exception();
      stop.request_stop();
    }
  };
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 1; i < bodies.size(); ++i)
      threads.emplace_back([&, i] { guarded(bodies[i]); });
    guarded(bodies.front());
  }
  if (error)
    std::rethrow_exception(error);
}

}  // namespace nbdelta::client::pull
