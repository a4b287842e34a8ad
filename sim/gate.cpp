#include "sim/gate.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "client/backup/options.hpp"

namespace nbdelta::sim {
namespace {

// What windows do not depend on, and would take long to rehearse: copying, a commit that is outrun.
constexpr std::chrono::seconds kCommitDeadline{5};
constexpr std::chrono::seconds kLongestPause{10};                    // between two backups
constexpr std::uint64_t kLargestRehearsed = std::uint64_t{1} << 29;  // bytes
constexpr std::size_t kMostNamed = 8;                                // of what was done in a window

/// "transaction (15 times), query-status"
std::string named(const std::vector<std::string>& what) {
  if (what.empty())
    return "nothing that QEMU, the agent or a file has seen: a wait";
  std::vector<std::pair<std::string, unsigned>> counted;
  for (const std::string& each : what) {
    const auto found = std::find_if(counted.begin(), counted.end(),
                                    [&](const auto& one) { return one.first == each; });
    if (found == counted.end())
      counted.emplace_back(each, 1);
    else
      ++found->second;
  }
  std::vector<std::string> texts;
  for (const auto& [name, count] : counted)
    texts.push_back(count == 1 ? name : fmt::format("{} ({} times)", name, count));
  if (texts.size() > kMostNamed) {
    texts.resize(kMostNamed);
    texts.emplace_back("...");
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

void make_short(Scenario& scenario) {
  scenario.duration = std::min<Clock::Duration>(scenario.duration, kLongestPause);
  for (ScenarioDisk& disk : scenario.disks)
    disk.size = std::min(disk.size, kLargestRehearsed);
  for (DiskLoad& each : scenario.guest.loads)
    each.load.area = std::min(each.load.area, scenario.disks[each.disk].size);
}

void check_mishap(const Scenario& scenario, Mishap mishap, const char* what, double& frozen,
                  std::vector<std::string>& failures) {
  Rehearsal rehearsal(scenario, scenario.seed);
  rehearsal.commit_deadline = kCommitDeadline;
  rehearsal.let_pass(scenario.guest.cache.expire);
  const std::optional<Clock::Duration> time = rehearsal.backup_with(mishap);
  if (!time) {
    failures.push_back(fmt::format("{}: there was no switch for it to happen in", what));
    return;
  }
  frozen = milliseconds(*time);
  const Clock::Duration allowed = rehearsal.longest_allowed(mishap);
  if (time->count() == 0)
    failures.push_back(fmt::format("{}: the guest was not frozen at all", what));
  if (*time > allowed)
    failures.push_back(fmt::format("{}: the guest was frozen for {:.3f} ms, and {:.3f} ms would do",
                                   what, frozen, milliseconds(allowed)));
}

}  // namespace

Gated gate(Scenario scenario, const GateOptions& options) {
  make_short(scenario);
  Gated result;
  result.scenario = scenario.name;
  result.disks = scenario.disks.size();
  const Clock::Duration deadline = client::backup::Options().freeze_deadline;
  std::vector<double> window;
  std::vector<double> agent;
  std::vector<double> qemu;
  std::vector<double> own;
  std::vector<std::vector<RunSession>> recorded(options.runs);
  for (std::uint64_t run = 0; run < options.runs; ++run) {
    GuestRun guest;
    guest.incrementals = options.incrementals;
    guest.commit_deadline = kCommitDeadline;
    guest.recorded = &recorded[run];
    const std::vector<RehearsedBackup> backups = rehearse(scenario, run, guest);
    for (std::size_t i = 0; i < backups.size(); ++i) {
      result.longest_freeze =
          std::max(result.longest_freeze, milliseconds(backups[i].longest_freeze));
      if (backups[i].longest_freeze > deadline)
        result.failures.push_back(fmt::format(
            "run {}, backup {}: the guest was frozen for {:.0f} ms, and its deadline is {:.0f} ms",
            run + 1, i + 1, milliseconds(backups[i].longest_freeze), milliseconds(deadline)));
      if (!backups[i].refusal.empty()) {
        result.failures.push_back(
            fmt::format("run {}, backup {}: {}", run + 1, i + 1, backups[i].refusal));
        continue;
      }
      const ObservedWindow& seen = backups[i].observed;
      window.push_back(milliseconds(seen.length));
      agent.push_back(milliseconds(seen.agent));
      qemu.push_back(milliseconds(seen.qemu));
      own.push_back(milliseconds(seen.own()));
      if (seen.own() > options.budget)
        result.failures.push_back(fmt::format(
            "run {}, backup {}: {:.3f} ms of the window are nbdelta's own, and {:.3f} ms are "
            "allowed; done in it besides: {}",
            run + 1, i + 1, own.back(), milliseconds(options.budget), named(seen.besides)));
    }
  }
  result.record = run_of(scenario, std::move(recorded));
  result.window = spread_of(std::move(window));
  result.agent = spread_of(std::move(agent));
  result.qemu = spread_of(std::move(qemu));
  result.own = spread_of(std::move(own));
  check_mishap(scenario, Mishap::switch_hangs, "QEMU does not answer the transaction",
               result.freeze_in_hang, result.failures);
  check_mishap(scenario, Mishap::killed, "nbdelta is killed in the window",
               result.freeze_after_kill, result.failures);
  return result;
}

}  // namespace nbdelta::sim
