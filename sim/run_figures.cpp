#include "sim/run_figures.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "qapi/agent_commands.hpp"
#include "qapi/job_commands.hpp"

namespace nbdelta::sim {
namespace {

namespace agent = qapi::agent;

bool succeeded(const RunCommand& command) {
  return command.end_us && !command.error;
}

std::int64_t duration(const RunCommand* command) {
  return command == nullptr ? 0 : *command->end_us - command->start_us;
}

/// The commands that make the window; any of them may be missing.
struct Parts {
  const RunCommand* freeze = nullptr;
  const RunCommand* switched = nullptr;
  const RunCommand* thaw = nullptr;
};

Parts parts_of(const RunSession& session) {
  Parts parts;
  for (const RunCommand& command : session.commands) {
    if (!succeeded(command))
      continue;
    if (command.snapshots.value_or(0) != 0 && parts.switched == nullptr)
      parts.switched = &command;
    else if (command.name == agent::GuestFsfreezeThaw::kName && parts.switched == nullptr)
      parts.freeze = nullptr;  // it ended before the switch
    else if (command.name == agent::GuestFsfreezeThaw::kName && parts.thaw == nullptr)
      parts.thaw = &command;
    else if ((command.name == agent::GuestFsfreezeFreeze::kName ||
              command.name == agent::GuestFsfreezeFreezeList::kName) &&
             parts.switched == nullptr)
      parts.freeze = &command;
  }
  if (parts.freeze == nullptr)
    parts.thaw = nullptr;  // there was nothing to thaw
  return parts;
}

/// Appends the state that begins where the one before ends.
void append(std::vector<SessionState>& states, std::string_view name, std::int64_t end_us) {
  const std::int64_t start = states.back().end_us;
  states.push_back({.name = name, .start_us = start, .end_us = std::max(start, end_us)});
}

}  // namespace

std::optional<FreezeWindow> window_of(const RunSession& session) {
  const Parts parts = parts_of(session);
  if (parts.switched == nullptr)
    return std::nullopt;
  const RunCommand& first = parts.freeze != nullptr ? *parts.freeze : *parts.switched;
  const RunCommand& last = parts.thaw != nullptr ? *parts.thaw : *parts.switched;
  return FreezeWindow{.start_us = first.start_us,
                      .end_us = *last.end_us,
                      .switch_start_us = parts.switched->start_us,
                      .freeze_us = duration(parts.freeze),
                      .switch_us = duration(parts.switched),
                      .thaw_us = duration(parts.thaw)};
}

std::vector<SessionState> states_of(const RunSession& session) {
  const Parts parts = parts_of(session);
  if (parts.switched == nullptr)
    return {{.name = "prepare", .start_us = session.start_us, .end_us = session.end_us}};
  const RunCommand& first = parts.freeze != nullptr ? *parts.freeze : *parts.switched;
  std::vector<SessionState> states{
      {.name = "prepare", .start_us = session.start_us, .end_us = first.start_us}};
  if (parts.freeze != nullptr)
    append(states, "freeze", parts.switched->start_us);
  append(states, "switch", *parts.switched->end_us);
  if (parts.thaw != nullptr)
    append(states, "thaw", *parts.thaw->end_us);
  if (states.back().end_us >= session.end_us)
    return states;  // of a manifest nothing more is known

  const std::int64_t open = states.back().end_us;
  std::int64_t commit = session.end_us;     // it begins
  std::int64_t committed = session.end_us;  // the overlays are gone
  for (const RunCommand& command : session.commands) {
    if (command.start_us < open)
      continue;
    if (command.name == qapi::BlockCommit::kName)
      commit = std::min(commit, command.start_us);
    if (command.name == qapi::BlockdevDel::kName && command.end_us)
      committed = *command.end_us;
  }
  if (session.pulled.empty()) {
    append(states, "copy", commit);
  } else {
    append(states, "export", session.pulled.front().at_us);
    append(states, "pull", commit);
  }
  if (commit < session.end_us) {
    append(states, "commit", std::max(commit, committed));
    append(states, "rotate", session.end_us);
  }
  return states;
}

std::string_view state_at(const std::vector<SessionState>& states, std::int64_t us) {
  std::string_view name;
  for (const SessionState& state : states)
    if (state.start_us <= us && us <= state.end_us)
      name = state.name;
  return name;
}

std::int64_t frozen_us(const RunSession& session) {
  std::int64_t sum = 0;
  for (const RunInterval& frozen : session.frozen)
    sum += frozen.end_us - frozen.start_us;
  return sum;
}

std::int64_t longest_request_us(const RunSession& session) {
  std::int64_t longest = 0;
  for (const RunLatency& latency : session.latency)
    longest = std::max(longest, latency.longest_us);
  return longest;
}

std::vector<double> rates_of(const std::vector<RunAmount>& amounts, std::int64_t start_us,
                             std::int64_t step_us, std::size_t steps) {
  std::vector<double> rates(steps);
  std::uint64_t before = 0;
  for (const RunAmount& amount : amounts) {
    const auto step = static_cast<std::size_t>(std::max<std::int64_t>(0, amount.at_us - start_us) /
                                               std::max<std::int64_t>(1, step_us));
    rates[std::min(step, steps - 1)] +=
        static_cast<double>(amount.bytes - before) / static_cast<double>(step_us) * 1e6;
    before = amount.bytes;
  }
  return rates;
}

Histogram histogram_of(const std::vector<double>& values, std::size_t most_columns) {
  Histogram histogram;
  if (values.empty())
    return histogram;
  const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
  const auto columns = [&](double width) {
    return std::floor(*greatest / width) - std::floor(*least / width) + 1;
  };
  // From a width that is surely too small, but not so small that the columns cannot be counted.
  const double range = std::max(*greatest - *least, *greatest * 0.01);
  double power = range <= 0 ? 1 : std::pow(10, std::floor(std::log10(range)) - 2);
  for (bool fits = false; !fits; power *= 10)
    for (const double factor : {1.0, 2.0, 5.0}) {
      histogram.width = power * factor;
      fits = columns(histogram.width) <= static_cast<double>(most_columns);
      if (fits)
        break;
    }
  const double first = std::floor(*least / histogram.width);
  histogram.start = first * histogram.width;
  histogram.counts.resize(static_cast<std::size_t>(columns(histogram.width)));
  for (const double value : values)
    ++histogram.counts[static_cast<std::size_t>(std::floor(value / histogram.width) - first)];
  return histogram;
}

std::vector<FaultEffect> effects_of(const std::vector<Run>& runs) {
  std::map<std::string, FaultEffect> effects;
  for (const Run& run : runs)
    for (const RunSession& session : run.sessions) {
      std::set<std::string> names;
      for (const RunFault& fault : session.faults)
        names.insert(fault.name);
      for (const std::string& name : names) {
        FaultEffect& effect = effects[name];
        effect.name = name;
        ++effect.sessions;
        effect.done += session.result == kResultDone ? 1U : 0U;
        effect.frozen_us.push_back(frozen_us(session));
        effect.longest_frozen_us = std::max(effect.longest_frozen_us, frozen_us(session));
        effect.longest_request_us =
            std::max(effect.longest_request_us, longest_request_us(session));
      }
    }
  std::vector<FaultEffect> list;
  for (auto& [name, effect] : effects)
    list.push_back(std::move(effect));
  return list;
}

}  // namespace nbdelta::sim
