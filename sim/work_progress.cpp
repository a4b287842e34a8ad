#include "sim/work_progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <utility>

#include "base/units.hpp"
#include "client/say.hpp"

namespace nbdelta::sim {
namespace {

constexpr std::chrono::milliseconds kBetweenLines{200};

}  // namespace

std::string work_progress_line(std::uint64_t done, std::uint64_t total, const std::string& parts,
                               double seconds) {
  std::string line =
      fmt::format("{} of {} {}, {:.0f} %", done, total, parts,
                  100 * static_cast<double>(done) / static_cast<double>(total == 0 ? 1 : total));
  if (done == 0 || seconds <= 0)
    return line;
  const double rate = static_cast<double>(done) / seconds;
  line += fmt::format(", {:.3g} a second", rate);
  if (done < total)
    line += fmt::format(", {} left", format_duration(static_cast<double>(total - done) / rate));
  return line;
}

WorkProgress::WorkProgress(std::uint64_t total, std::string parts)
    : total_(total), parts_(std::move(parts)) {
  if (::isatty(STDERR_FILENO) == 1)
    thread_ = std::jthread([this](const std::stop_token& stop) { show(stop); });
}

WorkProgress::~WorkProgress() {
  if (!thread_.joinable())
    return;
  thread_.request_stop();
  thread_.join();
}

void WorkProgress::show(const std::stop_token& stop) {
  const auto start = std::chrono::steady_clock::now();
  bool drawn = false;  // what is over at once shows nothing
  std::unique_lock lock(mutex_);
  while (true) {
    stopped_.wait_for(lock, stop, kBetweenLines, [] { return false; });
    if (stop.stop_requested())
      break;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    // ECMA-48, "Erase in line"
    client::say("\r{}\x1b[K", work_progress_line(done_, total_, parts_, elapsed.count()));
    std::fflush(stderr);
    drawn = true;
  }
  if (drawn)
    client::say("\r\x1b[K");
}

}  // namespace nbdelta::sim
