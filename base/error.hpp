#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace nbdelta {

/// The one exception of this project: a message for people that says what and where, and the
/// errno value that a protocol (NBD, FUSE) can carry.
class Error : public std::runtime_error {
 public:
  Error(int error_number, const std::string& message)
      : std::runtime_error(message), error_number_(error_number) {}

  /// An errno value, never 0.
  int error_number() const noexcept { return error_number_; }

 private:
  int error_number_;
};

/// Throws Error with a formatted message.
template <class... Args>
[[noreturn]] void fail(int error_number, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(error_number, fmt::format(format, std::forward<Args>(args)...));
}

/// Throws Error for a system call that just failed: the formatted message, then what errno says.
template <class... Args>
[[noreturn]] void fail_errno(fmt::format_string<Args...> format, Args&&... args) {
  const int saved = errno;
  throw Error(saved, fmt::format(format, std::forward<Args>(args)...) + ": " +
                         std::strerror(saved));  // NOLINT(concurrency-mt-unsafe): glibc's is safe
}

/// Checks an invariant of our own; on failure prints the place and aborts. It stays on in release
/// builds, and is never fed by a disk, a peer or a user: their faults are Errors.
void invariant(bool holds, std::string_view what,
               std::source_location where = std::source_location::current());

}  // namespace nbdelta
