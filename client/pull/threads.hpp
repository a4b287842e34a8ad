#pragma once

#include <exception>
#include <functional>
#include <mutex>
#include <stop_token>
#include <system_error>
#include <thread>
#include <vector>

namespace nbdelta::client::pull {

/// Runs each in a thread of its own, the first in this one; those for which the system has no
/// thread after that one. The first error stops the others, through `stop`, and is thrown once all
/// have ended.
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
    std::size_t next = 1;
    try {
      for (; next < bodies.size(); ++next)
        threads.emplace_back([&guarded, &body = bodies[next]] { guarded(body); });
    } catch (const std::system_error&) {
    }
    guarded(bodies.front());
    for (; next < bodies.size(); ++next)
      guarded(bodies[next]);
  }
  if (error)
    std::rethrow_exception(error);
}

}  // namespace nbdelta::client::pull
