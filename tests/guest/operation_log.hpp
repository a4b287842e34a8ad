#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace nbdelta::testing {

/// An operation of the guest's writer, as its log (writer.cpp) has it.
struct LoggedOperation {
  enum class Kind { write, zero, discard };

  std::uint64_t sequence = 0;  // from 1, one count for all disks
  std::uint64_t disk = 0;      // among the disks that are written to directly, from 0
  Kind kind = Kind::write;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  // Lines of the log, which is what orders operations: one was done before another began where its
  // `done` is less than the other's `started`.
  std::uint64_t started = 0;
  std::optional<std::uint64_t> done;      // empty: in flight when the log ended, or failed
  bool failed = false;                    // with an error in the guest
  std::chrono::microseconds latency{0};   // where it ended; the longest stall is the maximum
  std::chrono::microseconds ended_at{0};  // guest's CLOCK_MONOTONIC
};

/// The operations of a log in their order; those on files are passed over. A last line without its
/// end does not count. Throws Error where a line makes no sense.
std::vector<LoggedOperation> parse_operation_log(std::string_view log);

/// The least sequence number that is not known to be done: every operation before was acknowledged.
std::uint64_t first_not_done(const std::vector<LoggedOperation>& operations);

/// The greatest sequence number that has begun; 0 where there is none.
std::uint64_t last_started(const std::vector<LoggedOperation>& operations);

/// The longest latency of what has ended in the log from this byte on, where a line begins: of
/// operations, and of those on files of 1 ms and more.
std::chrono::microseconds longest_stall(std::string_view log, std::size_t from = 0);

}  // namespace nbdelta::testing
