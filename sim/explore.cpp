#include "sim/explore.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <regex>
#include <stop_token>
#include <utility>
#include <vector>

#include "client/pull/threads.hpp"
#include "sim/world.hpp"

namespace nbdelta::sim {

Explored explore(const Schedule& schedule, bool keep_log) {
  Explored explored;
  std::optional<World> world;
  try {
    world.emplace(schedule);
    world->run();
  } catch (const std::exception& error) {  // a restore point that cannot be read, too
    explored.violation = error.what();
  }
  if (world) {
    explored.steps = world->steps();
    explored.seen = world->seen();
    if (explored.violation || keep_log)
      explored.log = world->lines();
  }
  return explored;
}

std::vector<RunSession> record_schedule(const Schedule& schedule, RunRecorder::Detail detail) {
  std::optional<World> world;
  std::optional<RunRecorder> recorder;
  try {
    world.emplace(schedule);
    recorder.emplace([&world] { return world->now(); });
    world->record(*recorder, detail);
    world->run();
  } catch (const std::exception& error) {
    if (recorder && recorder->in_session())
      recorder->end_session(error.what());
  }
  world.reset();
  return recorder ? std::move(recorder->run().sessions) : std::vector<RunSession>();
}

namespace {

/// Takes what is left away from a schedule one by one, where its violation stays.
class Shrinker {
 public:
  Shrinker(Schedule schedule, std::string kind)
      : schedule_(std::move(schedule)), kind_(std::move(kind)) {}

  Schedule shrink() {
    while (shrink_once()) {
    }
    return std::move(schedule_);
  }

 private:
  bool shrink_once() {
    for (std::size_t i = 0; i < schedule_.sessions.size(); ++i)
      if (shrink_session(i))
        return true;
    for (std::size_t i = 0; schedule_.disks.size() > 1 && i < schedule_.disks.size(); ++i)
      if (try_without([i](Schedule& smaller) { erase_at(smaller.disks, i); }))
        return true;
    return false;
  }

  bool shrink_session(std::size_t i) {
    if (schedule_.sessions.size() > 1 &&
        try_without([i](Schedule& smaller) { erase_at(smaller.sessions, i); }))
      return true;
    for (std::size_t k = 0; k < schedule_.sessions[i].faults.size(); ++k)
      if (try_without([i, k](Schedule& smaller) { erase_at(smaller.sessions[i].faults, k); }))
        return true;
    return schedule_.sessions[i].writes_before != 0 &&
           try_without([i](Schedule& smaller) { smaller.sessions[i].writes_before = 0; });
  }

  template <class T>
  static void erase_at(std::vector<T>& all, std::size_t i) {
    all.erase(all.begin() + static_cast<std::ptrdiff_t>(i));
  }

  template <class Change>
  bool try_without(const Change& change) {
    Schedule smaller = schedule_;
    change(smaller);
    const Explored explored = explore(smaller);
    if (!explored.violation || kind_of(*explored.violation) != kind_)
      return false;
    schedule_ = std::move(smaller);
    return true;
  }

  Schedule schedule_;
  std::string kind_;
};

}  // namespace

std::string kind_of(const std::string& violation) {
  static const std::regex kParticular(R"([A-Za-z0-9]*[0-9][A-Za-z0-9]*|\bvd[a-z]\b)");
  return std::regex_replace(violation.substr(0, violation.find('\n')), kParticular, "#");
}

Schedule shrink(Schedule schedule) {
  const Explored explored = explore(schedule);
  if (!explored.violation)
    return schedule;
  return Shrinker(std::move(schedule), kind_of(*explored.violation)).shrink();
}

ExploreResult explore_seeds(std::uint64_t first, std::uint64_t last, unsigned jobs,
                            std::size_t most_failures, const std::function<void()>& done) {
  ExploreResult result;
  std::mutex mutex;
  std::atomic<std::uint64_t> next = 0;  // counted from `first`
  std::atomic<std::size_t> failures = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto work = [&] {
    ExploreResult part;
    while (failures < most_failures) {
      const std::uint64_t index = next++;
      if (index > last - first)
        break;
      const std::uint64_t seed = first + index;
      const Explored explored = explore(Schedule::of_seed(seed));
      ++part.schedules;
      part.steps += explored.steps;
      for (const std::string& what : explored.seen)
        ++part.seen[what];
      if (explored.violation) {
        part.failed.push_back(seed);
        ++failures;
      }
      done();
    }
    const std::lock_guard lock(mutex);
    result.schedules += part.schedules;
    result.steps += part.steps;
    result.failed.insert(result.failed.end(), part.failed.begin(), part.failed.end());
    for (const auto& [what, count] : part.seen)
      result.seen[what] += count;
  };
  std::stop_source nobody_stops;
  client::pull::run_threads(std::vector<std::function<void()>>(jobs, work), nobody_stops);
  std::sort(result.failed.begin(), result.failed.end());
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace nbdelta::sim
