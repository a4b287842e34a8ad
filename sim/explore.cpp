#include "sim/explore.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

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

std::vector<RunSession> record_seed(std::uint64_t seed, RunRecorder::Detail detail) {
  std::optional<World> world;
  std::optional<RunRecorder> recorder;
  try {
    world.emplace(Schedule::of_seed(seed));
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

bool fails(const Schedule& schedule) {
  return explore(schedule).violation.has_value();
}

/// Takes `smaller` where that fails too.
bool adopt(Schedule& schedule, Schedule smaller) {
  if (!fails(smaller))
    return false;
  schedule = std::move(smaller);
  return true;
}

bool shrink_once(Schedule& schedule) {
  for (std::size_t i = 0; i < schedule.sessions.size(); ++i) {
    Schedule smaller = schedule;
    smaller.sessions.erase(smaller.sessions.begin() + static_cast<std::ptrdiff_t>(i));
    if (!smaller.sessions.empty() && adopt(schedule, std::move(smaller)))
      return true;
    for (std::size_t k = 0; k < schedule.sessions[i].faults.size(); ++k) {
      smaller = schedule;
      auto& faults = smaller.sessions[i].faults;
      faults.erase(faults.begin() + static_cast<std::ptrdiff_t>(k));
      if (adopt(schedule, std::move(smaller)))
        return true;
    }
    if (schedule.sessions[i].writes_before != 0) {
      smaller = schedule;
      smaller.sessions[i].writes_before = 0;
      if (adopt(schedule, std::move(smaller)))
        return true;
    }
  }
  for (std::size_t i = 0; schedule.disks.size() > 1 && i < schedule.disks.size(); ++i) {
    Schedule smaller = schedule;
    smaller.disks.erase(smaller.disks.begin() + static_cast<std::ptrdiff_t>(i));
    if (adopt(schedule, std::move(smaller)))
      return true;
  }
  return false;
}

}  // namespace

Schedule shrink(Schedule schedule) {
  while (shrink_once(schedule)) {
  }
  return schedule;
}

ExploreResult explore_seeds(std::uint64_t first, std::uint64_t last, unsigned jobs,
                            std::size_t most_failures, const std::function<void()>& done) {
  ExploreResult result;
  std::mutex mutex;
  std::atomic<std::uint64_t> next = first;
  std::atomic<std::size_t> failures = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto work = [&] {
    ExploreResult part;
    while (failures < most_failures) {
      const std::uint64_t seed = next++;
      if (seed > last)
        break;
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
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < jobs; ++i)
    threads.emplace_back(work);
  work();
  for (std::thread& thread : threads)
    thread.join();
  std::sort(result.failed.begin(), result.failed.end());
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace nbdelta::sim
