#include "client/pull/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "base/units.hpp"
#include "client/say.hpp"

namespace nbdelta::client::pull {
namespace {

constexpr std::chrono::seconds kBetweenLines{10};

}  // namespace

std::string progress_line(const Snapshot& snapshot) {
  if (snapshot.total == 0)
    return "reading the map";
  const double share = static_cast<double>(snapshot.done) / static_cast<double>(snapshot.total);
  std::string line = fmt::format("{} of {}, {:.0f} %", format_size(snapshot.done),
                                 format_size(snapshot.total), 100 * share);
  if (snapshot.seconds <= 0 || snapshot.done == 0)
    return line;
  const double rate = static_cast<double>(snapshot.done) / snapshot.seconds;
  line += fmt::format(", {}/s", format_size(static_cast<std::uint64_t>(rate)));
  if (snapshot.done < snapshot.total)
    line += fmt::format(
        ", {} left", format_duration(static_cast<double>(snapshot.total - snapshot.done) / rate));
  return line;
}

Progress::Style Progress::style_for_stderr() {
  return ::isatty(STDERR_FILENO) == 1 ? Style::redrawn : Style::lines;
}

void Progress::tick(Clock::time_point now) {
  if (style_ == Style::none)
    return;
  const std::uint64_t total = counters_.total;
  if (total != 0 && started_ == Clock::time_point{})
    started_ = now;
  if (shown_ == Clock::time_point{})
    shown_ = now;  // what is over at once shows nothing
  if (style_ == Style::lines && now - shown_ < kBetweenLines)
    return;
  shown_ = now;
  const std::chrono::duration<double> elapsed = now - started_;
  std::string line = progress_line(
      {counters_.written + counters_.zeroed, total, total == 0 ? 0 : elapsed.count()});
  if (!label_.empty())
    line = label_ + ": " + line;
  if (style_ == Style::lines) {
    say("{}\n", line);
  } else {
    say("\r{}\x1b[K", line);  // ECMA-48, "Erase in line"
    std::fflush(stderr);
    drawn_ = true;
  }
}

void Progress::clear() {
  if (drawn_)
    say("\r\x1b[K");
  drawn_ = false;
}

}  // namespace nbdelta::client::pull
