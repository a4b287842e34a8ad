#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nbdelta::sim {

/// One action that changes something, of a trace that fio recorded.
struct TraceEntry {
  enum class Kind : std::uint8_t { write, trim, sync };
  Kind kind = Kind::write;
  std::uint64_t file = 0;  // of the trace's files, in the order that they were added
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  /// From the trace's beginning; in version 2 the sum of the waits before it.
  std::chrono::microseconds at{};
  std::uint64_t line = 0;  // of the trace, from 1
  bool operator==(const TraceEntry&) const = default;
};

struct Trace {
  int version = 0;
  std::vector<std::string> files;
  std::vector<TraceEntry> entries;
};

/// The format of fio's --write_iolog, versions 2 and 3 (fio's HOWTO, "Trace file format"). Reads
/// are passed over. Throws Error (EINVAL) with `name` and the line.
Trace parse_iolog(std::string_view text, const std::string& name);

}  // namespace nbdelta::sim
