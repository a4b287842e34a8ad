#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/clock.hpp"
#include "qapi/message.hpp"
#include "sim/guest.hpp"
#include "sim/run_file.hpp"

namespace nbdelta::sim {

using client::Clock;

/// At most so many in each list of a session but its commands.
inline constexpr std::size_t kMostEntries = 400;

/// Values over time in steps of equal length, which doubles where they would be too many. What
/// falls into one step becomes one by T::merge().
template <class T>
class Steps {
 public:
  explicit Steps(std::size_t most = kMostEntries) : most_(most) {}

  void add(std::int64_t us, const T& value) {
    put(steps_, us / step_us_, value);
    while (steps_.size() > most_) {
      step_us_ *= 2;
      std::map<std::int64_t, T> wider;
      for (const auto& [index, each] : steps_)
        put(wider, index / 2, each);
      steps_.swap(wider);
    }
  }

  std::int64_t step_us() const { return step_us_; }
  const std::map<std::int64_t, T>& steps() const { return steps_; }

 private:
  static void put(std::map<std::int64_t, T>& steps, std::int64_t index, const T& value) {
    const auto [place, is_new] = steps.try_emplace(index, value);
    if (!is_new)
      place->second.merge(value);
  }

  std::size_t most_;
  std::int64_t step_us_ = 1000;
  std::map<std::int64_t, T> steps_;
};

/// Writes down what happens in a run. What happens outside of sessions is not kept. For one thread.
class RunRecorder {
 public:
  explicit RunRecorder(std::function<Clock::Time()> now);

  enum class Detail : std::uint8_t {
    all,
    window,  // the commands that make the freeze window, one step of requests, and faults
  };
  void begin_session(std::string name, Detail detail);
  /// What it came to: see RunSession::result.
  void end_session(std::optional<std::string> result);
  /// As if it had never begun.
  void drop_session();
  bool in_session() const { return session_.has_value(); }

  /// Each of the two carries out one command after the other.
  void arrived(std::string_view to, const qapi::Command& command);
  void answered(std::string_view to, const std::string& error);
  void frozen(bool now);
  void completed(const Completed& request);
  void overlay(std::uint64_t bytes);
  void pulled(std::uint64_t more);
  void fault(std::string_view name);

  /// Its name, time and seed are to be filled in.
  Run& run() { return run_; }
  /// Of the session that has begun.
  const RunSession& session() const { return *session_; }

 private:
  struct Latency {
    std::uint64_t requests = 1;
    std::int64_t sum_us = 0;
    std::int64_t longest_us = 0;
    void merge(const Latency& other);
  };
  struct Amount {
    std::int64_t at_us = 0;
    std::uint64_t bytes = 0;
    void merge(const Amount& later) { *this = later; }
  };

  std::int64_t us(Clock::Time time) const;
  bool all() const { return session_ && detail_ == Detail::all; }
  static std::vector<RunAmount> list(const Steps<Amount>& amounts);

  std::function<Clock::Time()> now_;
  Clock::Time start_;
  Run run_;
  std::optional<RunSession> session_;
  Detail detail_ = Detail::all;
  std::map<std::string, std::optional<std::size_t>, std::less<>> open_;  // commands, by peer
  std::optional<std::int64_t> frozen_since_us_;
  Steps<Latency> latency_;
  Steps<Amount> overlay_;
  Steps<Amount> pulled_;
  std::uint64_t pulled_bytes_ = 0;
};

}  // namespace nbdelta::sim
