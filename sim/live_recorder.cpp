#include "sim/live_recorder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "client/say.hpp"
#include "sim/unawaited.hpp"

namespace nbdelta::sim {
namespace {

constexpr std::chrono::milliseconds kSample{50};

bool changes_something(const RunSession& session) {
  return std::any_of(session.commands.begin(), session.commands.end(),
                     [](const RunCommand& command) {
                       return command.to == kToQemu && !command.name.starts_with("query-") &&
                              command.name != "qmp_capabilities";
                     });
}

}  // namespace

LiveRecorder::LiveRecorder(asio::io_context& loop, Clock& clock, LiveQemu& qemu, Guest& guest,
                           std::string file, const Scenario& scenario)
    : loop_(&loop), clock_(&clock), qemu_(&qemu), file_(std::move(file)), recorder_([&clock] {
        return clock.now();
      }) {
  recorder_.run().name = scenario.name;
  recorder_.run().time = kReal;
  recorder_.run().seed = scenario.seed;
  QemuHooks& hooks = qemu.qemu().hooks();
  hooks.arrived = [this](const qapi::Command& command) { recorder_.arrived(kToQemu, command); };
  hooks.answered = [this](const std::string& error) { recorder_.answered(kToQemu, error); };
  FakeAgent& agent = qemu.agent();
  agent.arrived = [this](const qapi::Command& command) { recorder_.arrived(kToAgent, command); };
  agent.answered = [this](const std::string& error) { recorder_.answered(kToAgent, error); };
  agent.changed = [this, others = agent.changed](bool frozen) {
    recorder_.frozen(frozen);
    others(frozen);
  };
  guest.completed = [this](const Completed& request) { recorder_.completed(request); };
  qemu.client_came = [this] {
    recorder_.begin_session(fmt::format("session {}", recorder_.run().sessions.size() + 1),
                            RunRecorder::Detail::all);
    asio::co_spawn(*loop_, watch_overlays(++session_), kUnawaited);
  };
  qemu.client_left = [this] { end(); };
}

void LiveRecorder::end() {
  if (!recorder_.in_session())
    return;
  if (!changes_something(recorder_.session())) {
    recorder_.drop_session();
    return;
  }
  recorder_.overlay(overlay_bytes());
  recorder_.end_session(std::nullopt);
  try {
    write_run(file_, recorder_.run());
  } catch (const Error& error) {  // the guest goes on
    client::say("nbdelta-sim: {}\n", error.what());
  }
}

asio::awaitable<void> LiveRecorder::watch_overlays(std::uint64_t session) {
  while (recorder_.in_session() && session == session_) {
    recorder_.overlay(overlay_bytes());
    co_await clock_->wait(kSample);
  }
}

std::uint64_t LiveRecorder::overlay_bytes() {
  std::uint64_t bytes = 0;
  for (const auto& node : qemu_->qemu().graph().nodes())
    if (node->is_format() && node->name.starts_with("nbdelta-"))
      bytes += node->image->allocated();
  return bytes;
}

}  // namespace nbdelta::sim
