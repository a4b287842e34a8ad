#include "sim/run_recorder.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include "qapi/agent_commands.hpp"
#include "sim/transaction.hpp"

namespace nbdelta::sim {
namespace {

constexpr std::size_t kMostCommands = 20'000;  // queries beyond are not kept

}  // namespace

RunRecorder::RunRecorder(std::function<Clock::Time()> now) : now_(std::move(now)), start_(now_()) {}

void RunRecorder::Latency::merge(const Latency& other) {
  requests += other.requests;
  sum_us += other.sum_us;
  longest_us = std::max(longest_us, other.longest_us);
}

std::int64_t RunRecorder::us(Clock::Time time) const {
  return std::chrono::duration_cast<std::chrono::microseconds>(time - start_).count();
}

void RunRecorder::begin_session(std::string name, Detail detail) {
  session_.emplace();
  session_->name = std::move(name);
  session_->start_us = us(now_());
  detail_ = detail;
  open_.clear();
  latency_ = Steps<Latency>(detail == Detail::all ? kMostEntries : 1);
  overlay_ = Steps<Amount>();
  pulled_ = Steps<Amount>();
  pulled_bytes_ = 0;
  if (frozen_since_us_)
    frozen_since_us_ = session_->start_us;
}

std::vector<RunAmount> RunRecorder::list(const Steps<Amount>& amounts) {
  std::vector<RunAmount> list;
  for (const auto& [index, amount] : amounts.steps())
    list.push_back({.at_us = amount.at_us, .bytes = amount.bytes});
  return list;
}

void RunRecorder::end_session(std::optional<std::string> result) {
  session_->end_us = us(now_());
  session_->result = std::move(result);
  if (frozen_since_us_)
    session_->frozen.push_back({.start_us = *frozen_since_us_, .end_us = session_->end_us});
  for (const auto& [index, latency] : latency_.steps())
    session_->latency.push_back(
        {.start_us = index * latency_.step_us(),
         .requests = latency.requests,
         .mean_us = latency.sum_us / static_cast<std::int64_t>(latency.requests),
         .longest_us = latency.longest_us});
  session_->overlay = list(overlay_);
  session_->pulled = list(pulled_);
  run_.sessions.push_back(std::move(*session_));
  session_.reset();
}

void RunRecorder::drop_session() {
  session_.reset();
}

void RunRecorder::arrived(std::string_view to, const qapi::Command& command) {
  if (!session_)
    return;
  const std::int64_t snapshots = snapshots_in(command);
  const bool makes_window = snapshots != 0 ||
                            command.name == qapi::agent::GuestFsfreezeFreeze::kName ||
                            command.name == qapi::agent::GuestFsfreezeFreezeList::kName ||
                            command.name == qapi::agent::GuestFsfreezeThaw::kName;
  open_[std::string(to)].reset();
  const bool too_many =
      session_->commands.size() >= kMostCommands && command.name.starts_with("query-");
  if (!makes_window && (!all() || too_many))
    return;
  open_[std::string(to)] = session_->commands.size();
  RunCommand& added = session_->commands.emplace_back();
  added.to = to;
  added.name = command.name;
  added.start_us = us(now_());
  if (snapshots != 0)
    added.snapshots = static_cast<std::uint64_t>(snapshots);
}

void RunRecorder::answered(std::string_view to, const std::string& error) {
  const auto open = open_.find(to);
  if (!session_ || open == open_.end() || !open->second)
    return;
  RunCommand& command = session_->commands[*open->second];
  command.end_us = us(now_());
  if (!error.empty())
    command.error = error;
  open->second.reset();
}

void RunRecorder::frozen(bool now) {
  const std::int64_t at = us(now_());
  if (!now && frozen_since_us_ && session_)
    session_->frozen.push_back({.start_us = *frozen_since_us_, .end_us = at});
  frozen_since_us_ = now ? std::optional(at) : std::nullopt;
}

/// In the step in which it was sent.
void RunRecorder::completed(const Completed& request) {
  if (!session_)
    return;
  const std::int64_t latency =
      std::chrono::duration_cast<std::chrono::microseconds>(request.latency).count();
  latency_.add(std::max(us(request.sent), session_->start_us),
               {.requests = 1, .sum_us = latency, .longest_us = latency});
}

void RunRecorder::overlay(std::uint64_t bytes) {
  const std::int64_t at = us(now_());
  if (all())
    overlay_.add(at, {.at_us = at, .bytes = bytes});
}

void RunRecorder::pulled(std::uint64_t more) {
  const std::int64_t at = us(now_());
  pulled_bytes_ += more;
  if (all())
    pulled_.add(at, {.at_us = at, .bytes = pulled_bytes_});
}

void RunRecorder::fault(std::string_view name) {
  if (session_)
    session_->faults.push_back({.at_us = us(now_()), .name = std::string(name)});
}

}  // namespace nbdelta::sim
