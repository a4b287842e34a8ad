#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

#include "client/pull/work.hpp"

namespace nbdelta::client::pull {

/// How far a pull is.
struct Snapshot {
  std::uint64_t done = 0;   // bytes
  std::uint64_t total = 0;  // 0: not known yet
  double seconds = 0;       // since the first byte could move
};

/// "1.00 GiB of 4.00 GiB, 25 %, 512 MiB/s, 6.00 s left".
std::string progress_line(const Snapshot& snapshot);

/// Shows progress on stderr: one line that is redrawn on a terminal, a line every ten seconds
/// elsewhere. For one thread.
class Progress {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Style : std::uint8_t { none, lines, redrawn };

  /// What suits stderr.
  static Style style_for_stderr();

  /// `label` begins the line; it may be empty.
  Progress(Style style, const Counters& counters, std::string label = {})
      : style_(style), counters_(counters), label_(std::move(label)) {}

  /// Call several times a second.
  void tick(Clock::time_point now);

  /// Takes the redrawn line away.
  void clear();

 private:
  Style style_;
  const Counters& counters_;
  std::string label_;
  Clock::time_point started_{};  // when the total became known
  Clock::time_point shown_{};
  bool drawn_ = false;
};

}  // namespace nbdelta::client::pull
