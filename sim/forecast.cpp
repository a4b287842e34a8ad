#include "sim/forecast.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <stop_token>

#include "client/pull/threads.hpp"

namespace nbdelta::sim {
namespace {

/// Values of all backups, or of those of one kind.
class Values {
 public:
  explicit Values(const std::vector<std::vector<RehearsedBackup>>& runs) : runs_(&runs) {}

  template <class Value>
  Spread all(Value value) const {
    return collect(0, SIZE_MAX, value);
  }
  template <class Value>
  Spread full(Value value) const {
    return collect(0, 1, value);
  }
  template <class Value>
  Spread incremental(Value value) const {
    return collect(1, SIZE_MAX, value);
  }

 private:
  template <class Value>
  Spread collect(std::size_t first, std::size_t end, Value value) const {
    std::vector<double> values;
    for (const auto& run : *runs_)
      for (std::size_t i = first; i < std::min(end, run.size()); ++i)
        if (run[i].refusal.empty())
          values.push_back(value(run[i]));
    return spread_of(std::move(values));
  }

  const std::vector<std::vector<RehearsedBackup>>* runs_;
};

Forecast summarize(const std::vector<std::vector<RehearsedBackup>>& runs) {
  const Values values(runs);
  const auto us = [](auto part) {
    return [part](const RehearsedBackup& backup) {
      return static_cast<double>(part(backup.window)) / 1000;
    };
  };
  using Window = client::repository::Window;
  const auto session = [](const RehearsedBackup& b) { return milliseconds(b.session); };
  const auto overlay = [](const RehearsedBackup& b) {
    return static_cast<double>(b.overlay_bytes);
  };
  Forecast forecast;
  forecast.window = values.all(us([](const Window& w) { return w.length_us(); }));
  forecast.freeze = values.all(us([](const Window& w) {
    return w.freeze_answered_us.value_or(0) - w.freeze_sent_us.value_or(0);
  }));
  forecast.switched = values.all(us([](const Window& w) { return w.switch_us(); }));
  forecast.thaw = values.all(us(
      [](const Window& w) { return w.thaw_answered_us.value_or(0) - w.thaw_sent_us.value_or(0); }));
  forecast.own = values.all(us([](const Window& w) { return w.own_us(); }));
  forecast.stall =
      values.all([](const RehearsedBackup& b) { return milliseconds(b.longest_stall); });
  forecast.full_overlay = values.full(overlay);
  forecast.incremental_overlay = values.incremental(overlay);
  forecast.full_session = values.full(session);
  forecast.incremental_session = values.incremental(session);
  forecast.windows = forecast.window.count;
  for (const auto& run : runs)
    for (const RehearsedBackup& backup : run) {
      forecast.overlays_kept += backup.overlay_kept ? 1U : 0U;
      forecast.refused += backup.refusal.empty() ? 0U : 1U;
      if (forecast.refusal.empty())
        forecast.refusal = backup.refusal;
    }
  return forecast;
}

}  // namespace

double milliseconds(Clock::Duration time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

std::vector<RehearsedBackup> rehearse(const Scenario& scenario, std::uint64_t run,
                                      const GuestRun& options) {
  Rehearsal rehearsal(scenario, scenario.seed + run);
  rehearsal.commit_deadline = options.commit_deadline;
  RunRecorder recorder([&rehearsal] { return rehearsal.now(); });
  if (options.recorded != nullptr)
    rehearsal.record(recorder, run == 0 ? RunRecorder::Detail::all : RunRecorder::Detail::window);
  std::vector<RehearsedBackup> backups;
  // What is dirty has come to what it usually is; and no two runs are at the same point of it.
  const PageCacheSetup& cache = scenario.guest.cache;
  const double phase = rehearsal.random().fraction();
  rehearsal.let_pass(cache.expire + cache.interval +
                     std::chrono::duration_cast<Clock::Duration>(cache.interval * phase));
  for (std::uint64_t i = 0; i <= options.incrementals; ++i) {
    if (i != 0) {
      const double share = 0.9 + 0.2 * rehearsal.random().fraction();
      rehearsal.let_pass(std::chrono::duration_cast<Clock::Duration>(scenario.duration * share));
    }
    backups.push_back(rehearsal.backup());
    options.backed_up();
    if (backups.back().overlay_kept)
      break;  // so would be the next one's, after as long a time
  }
  if (options.recorded != nullptr)
    *options.recorded = std::move(recorder.run().sessions);
  return backups;
}

Run run_of(const Scenario& scenario, std::vector<std::vector<RunSession>> guests) {
  Run run;
  run.name = scenario.name;
  run.seed = scenario.seed;
  for (std::size_t guest = 0; guest < guests.size(); ++guest)
    for (RunSession& session : guests[guest]) {
      session.name = fmt::format("guest {}, {}", guest + 1, session.name);
      run.sessions.push_back(std::move(session));
    }
  return run;
}

Spread spread_of(std::vector<double> values) {
  if (values.empty())
    return {};
  std::sort(values.begin(), values.end());
  const auto rank = [&](double share) {
    const double place = std::ceil(share * static_cast<double>(values.size()));
    return values[static_cast<std::size_t>(std::max(place, 1.0)) - 1];
  };
  return {values.size(), rank(0.5), rank(0.95), rank(0.99), values.back()};
}

Forecast forecast(const Scenario& scenario, const ForecastOptions& options) {
  std::vector<std::vector<RehearsedBackup>> runs(options.runs);
  std::vector<std::vector<RunSession>> recorded(options.runs);
  std::atomic<std::uint64_t> next = 0;
  std::stop_source failed;
  const auto work = [&] {
    for (std::uint64_t run = next++; run < options.runs && !failed.stop_requested(); run = next++) {
      GuestRun guest;
      guest.incrementals = options.incrementals;
      guest.commit_deadline = options.commit_deadline;
      guest.recorded = options.record != nullptr ? &recorded[run] : nullptr;
      guest.backed_up = [&options] { options.done(1); };
      runs[run] = rehearse(scenario, run, guest);
      options.done(options.incrementals + 1 - runs[run].size());
    }
  };
  client::pull::run_threads(std::vector<std::function<void()>>(options.threads, work), failed);
  if (options.record != nullptr)
    *options.record = run_of(scenario, std::move(recorded));
  return summarize(runs);
}

}  // namespace nbdelta::sim
