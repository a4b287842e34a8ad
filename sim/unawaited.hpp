#pragma once

#include <exception>

namespace nbdelta::sim {

/// Leaves a coroutine of a process that is about to be killed.
struct Killed {};

/// Whether it is an exception, and another than that.
inline bool is_failure(const std::exception_ptr& error) {
  if (!error)
    return false;
  try {
    std::rethrow_exception(error);
  } catch (const Killed&) {
    return false;
  } catch (...) {
    return true;
  }
}

/// The completion of a coroutine that nobody awaits. What it expects it handles itself: anything
/// else leaves the loop that it runs in, and so ends the schedule or the program.
struct Unawaited {
  void operator()(const std::exception_ptr& error) const {
    if (is_failure(error))
      std::rethrow_exception(error);
  }
};
inline constexpr Unawaited kUnawaited;

}  // namespace nbdelta::sim
