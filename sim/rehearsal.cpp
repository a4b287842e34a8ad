#include "sim/rehearsal.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "sim/session_environment.hpp"

namespace nbdelta::sim {

using namespace std::chrono_literals;
namespace backup = client::backup;

namespace {

constexpr Clock::Duration kHang = 1h;
constexpr Clock::Duration kAftermath = 15s;

}  // namespace

Rehearsal::Rehearsal(const Scenario& scenario, std::uint64_t seed)
    : scenario_(scenario),
      random_(seed),
      qemu_(qemu_process_.executor(), qemu_process_.clock(), store_, seed),
      agent_(qemu_process_.executor(), qemu_process_.clock()) {
  if (scenario_.qemu.version == "10.0")
    qemu_.version() = kQemu10;
  create_disks();
  guest_.emplace(qemu_process_.executor(), qemu_process_.clock(), *disks_, scenario_.guest,
                 random_.next());
  connect();
  guest_->start();
}

Rehearsal::~Rehearsal() {
  if (nbdelta_)
    nbdelta_->kill();
  guardians_.clear();
  guest_->stop();
  qemu_process_.kill();
}

std::string Rehearsal::image_path(const ScenarioDisk& disk) const {
  return "/vm/" + disk.name + "." + disk.format;
}

void Rehearsal::create_disks() {
  WriteNumber number = 0;
  for (const ScenarioDisk& disk : scenario_.disks) {
    const std::uint64_t granules = disk.size / MemoryImage::kGranule;
    MemoryImage& image = store_.create_image(image_path(disk), disk.format, granules);
    MemoryImage* below = nullptr;
    if (disk.backing) {
      const std::string path = "/vm/" + disk.name + ".below.qcow2";
      below = &store_.create_image(path, "qcow2", granules);
      image.set_backing({path, "qcow2"});
    }
    for (std::uint64_t granule = 0; granule < granules; ++granule)
      (below != nullptr && granule % 2 == 0 ? *below : image).write(granule, ++number);
    image.flush();
    if (below != nullptr)
      below->flush();
    Node& node = qemu_.graph().open({.driver = disk.format,
                                     .name = disk.by_drive ? "" : disk.name,
                                     .file_name = {},
                                     .path = image_path(disk),
                                     .read_only = false,
                                     .no_backing = false,
                                     .direct = false});
    qemu_.graph().add_device(disk.by_drive ? disk.name : "", disk.name, node);
  }
  disks_.emplace(qemu_, number);
}

void Rehearsal::connect() {
  agent_.file_systems = static_cast<std::int64_t>(scenario_.disks.size());
  agent_.freeze = [] {
    FreezeBehaviour behaviour;
    behaviour.time = {};  // the guest takes it
    return behaviour;
  };
  agent_.quiesce = [this] { return guest_->freeze(); };
  agent_.changed = [this](bool frozen) {
    watch_.frozen(frozen, time_.now());
    if (recorder_ != nullptr)
      recorder_->frozen(frozen);
    if (!frozen)
      guest_->thaw();
  };
  agent_.carried_out = [this](const std::string& name, Clock::Time begun) {
    watch_.agent_answered(name, begun, time_.now());
  };
  qemu_.hooks().before_command =
      [this](const qapi::Command& command) -> std::optional<std::string> {
    const bool switches = command.name == qapi::Transaction::kName;
    watch_.qemu_answered(command.name, time_.now() - qemu_.time_of(command), time_.now());
    if (switches && mishap_ == Mishap::killed && nbdelta_) {
      nbdelta_->doom();
      mishap_ = Mishap::none;
    }
    return std::nullopt;
  };
  qemu_.hooks().after_command = [this](const qapi::Command& command) {
    AnswerFate fate;
    if (command.name == qapi::Transaction::kName && mishap_ == Mishap::switch_hangs) {
      fate.delay = kHang;
      mishap_ = Mishap::none;
    }
    return fate;
  };
  qemu_.hooks().step = [this](std::string_view what) {
    if (what == "job copied")
      qemu_.timing().job_granule = storage_time(2 * MemoryImage::kGranule);
  };
}

void Rehearsal::record(RunRecorder& recorder, RunRecorder::Detail detail) {
  recorder_ = &recorder;
  detail_ = detail;
  qemu_.hooks().arrived = [&recorder](const qapi::Command& command) {
    recorder.arrived(kToQemu, command);
  };
  qemu_.hooks().answered = [&recorder](const std::string& error) {
    recorder.answered(kToQemu, error);
  };
  agent_.arrived = [&recorder](const qapi::Command& command) {
    recorder.arrived(kToAgent, command);
  };
  agent_.answered = [&recorder](const std::string& error) { recorder.answered(kToAgent, error); };
  guest_->completed = [&recorder](const Completed& request) { recorder.completed(request); };
}

void Rehearsal::draw_times() {
  const auto vary = [this](Clock::Duration time, double jitter) {
    return std::chrono::duration_cast<Clock::Duration>(time * draw_jitter(random_, jitter));
  };
  const QemuSetup& qemu = scenario_.qemu;
  const auto disks = static_cast<std::int64_t>(scenario_.disks.size());
  qemu_.timing().command = vary(qemu.command, qemu.jitter);
  qemu_.timing().transaction = qemu_.timing().command;
  qemu_.timing().snapshot = vary(qemu.snapshot, qemu.jitter);
  qemu_.timing().job_granule = storage_time(2 * MemoryImage::kGranule);
  agent_.command_time = vary(scenario_.agent.latency, scenario_.agent.jitter);
  agent_.thaw_time = vary(scenario_.agent.thaw * disks, scenario_.agent.jitter);
}

Clock::Duration Rehearsal::storage_time(std::uint64_t bytes) {
  return guest_->storage().stream(time_.now(), bytes) - time_.now();
}

Clock::Duration Rehearsal::pull_time(bool changed) {
  if (!changed)
    return {};
  pulling_ += MemoryImage::kGranule;
  return storage_time(MemoryImage::kGranule);
}

Process& Rehearsal::start_guardian_process() {
  guardians_.push_back(std::make_unique<Process>(time_, "guardian"));
  return *guardians_.back();
}

Costs Rehearsal::costs() const {
  return {.message = kMessage, .file_change = scenario_.guest.storage.flush, .start = kStart};
}

void Rehearsal::step(const std::string& what, Process* /*self*/) {
  watch_.did(what);
  const std::uint64_t overlay = overlay_bytes();
  most_overlay_bytes_ = std::max(most_overlay_bytes_, overlay);
  if (recorder_ == nullptr)
    return;
  recorder_->overlay(overlay);
  if (pulling_ != 0)
    recorder_->pulled(std::exchange(pulling_, 0));
}

std::uint64_t Rehearsal::overlay_bytes() const {
  std::uint64_t bytes = 0;
  for (auto file = store_.files().lower_bound("/vm/nbdelta-");
       file != store_.files().end() && file->first.starts_with("/vm/nbdelta-"); ++file)
    bytes += file->second.image ? file->second.image->allocated() : 0;
  return bytes;
}

bool Rehearsal::run_once() {
  bool ran = nbdelta_ && nbdelta_->run();
  const auto run = [&ran](Process& process) {
    ran |= process.run();
    if (process.failure())  // all errors that may happen end where they are met
      std::rethrow_exception(process.failure());
  };
  for (const auto& guardian : guardians_)
    run(*guardian);
  std::erase_if(guardians_, [](const auto& guardian) { return guardian->ended(); });
  run(qemu_process_);
  if (nbdelta_ && nbdelta_->doomed())
    nbdelta_->kill();
  store_.now =
      1'700'000'000 +
      std::chrono::duration_cast<std::chrono::seconds>(time_.now().time_since_epoch()).count();
  return ran;
}

void Rehearsal::let_pass(Clock::Duration duration) {
  const Clock::Time end = time_.now() + duration;
  // Whoever else waits, this one is there to be woken.
  const auto alarm = std::make_shared<bool>(false);
  qemu_process_.spawn([](Clock& clock, Clock::Time time, auto rang) -> asio::awaitable<void> {
    co_await clock.wait_until(time);
    *rang = true;
  }(qemu_process_.clock(), end, alarm));
  while (!*alarm)
    if (!run_once())
      time_.advance();
}

/// Returns what went wrong.
std::exception_ptr Rehearsal::run_session(backup::Report& report) {
  backup::Options options;
  options.qmp = "/run/vm.qmp";
  options.agent = "/run/vm.agent";
  options.vm = "vm";
  options.folder = "/repo/vm";
  options.quiesce = backup::Quiesce::require;
  options.commit_deadline = commit_deadline;
  draw_times();
  watch_ = {};
  nbdelta_ = std::make_unique<Process>(time_, "nbdelta");
  const auto environment = session_environment(*this, *nbdelta_);
  const backup::Reporter reporter;
  nbdelta_->spawn([](backup::Environment& world, const backup::Options& wanted,
                     const backup::Reporter& told,
                     backup::Report& result) -> asio::awaitable<void> {
    backup::Session session(world, wanted, told);
    result = co_await session.backup();
  }(*environment, options, reporter, report));
  while (nbdelta_->alive() && !nbdelta_->ended())
    if (!run_once() && !nbdelta_->ended() && !time_.advance())
      fail(EDEADLK, "the rehearsal stands still");
  const std::exception_ptr failure = nbdelta_->failure();
  nbdelta_->kill();
  nbdelta_.reset();
  return failure;
}

RehearsedBackup Rehearsal::backup() {
  guest_->reset_longest_stall();
  most_overlay_bytes_ = 0;
  const Clock::Time start = time_.now();
  if (recorder_ != nullptr)
    recorder_->begin_session(fmt::format("backup {}", recorder_->run().sessions.size() + 1),
                             detail_);
  backup::Report report;
  if (const std::exception_ptr failure = run_session(report))
    return refused(failure);
  if (!watch_.window())
    fail(EIO, "{}: the guest was not frozen and thawed", scenario_.name);
  if (recorder_ != nullptr)
    recorder_->end_session(report.overlay_kept ? "the overlay is kept: the commit did not end"
                                               : std::string(kResultDone));
  return {.refusal = {},
          .window = report.manifest.window,
          .observed = *watch_.window(),
          .longest_freeze = watch_.longest_freeze(time_.now()),
          .overlay_bytes = most_overlay_bytes_,
          .session = time_.now() - start,
          .longest_stall = guest_->longest_stall(),
          .overlay_kept = report.overlay_kept};
}

/// Throws `failure` where that is not why.
RehearsedBackup Rehearsal::refused(const std::exception_ptr& failure) {
  RehearsedBackup result;
  try {
    std::rethrow_exception(failure);
  } catch (const backup::Refused& error) {
    result.refusal = error.what();
  }
  if (recorder_ != nullptr)
    recorder_->end_session(result.refusal);
  while (agent_.busy() || agent_.frozen())
    let_pass(kAftermath);
  result.longest_freeze = watch_.longest_freeze(time_.now());
  return result;
}

std::optional<Clock::Duration> Rehearsal::backup_with(Mishap mishap) {
  mishap_ = mishap;
  backup::Report report;
  run_session(report);  // it fails, and says so
  if (std::exchange(mishap_, Mishap::none) != Mishap::none)
    return std::nullopt;
  let_pass(kAftermath);
  if (agent_.frozen())
    fail(EIO, "{}: the guest is still frozen", scenario_.name);
  return watch_.longest_freeze(time_.now());
}

Clock::Duration Rehearsal::longest_allowed(Mishap mishap) const {
  // A thaw goes out with a synchronisation and its delimiter, which the agent takes for a command.
  const Clock::Duration thaw = 3 * agent_.command_time + agent_.thaw_time + 4 * kMessage;
  const Clock::Duration switched =
      qemu_.timing().transaction +
      qemu_.timing().snapshot * static_cast<std::int64_t>(scenario_.disks.size());
  const Clock::Duration messages = 4 * kMessage;
  return thaw + messages +
         (mishap == Mishap::switch_hangs ? backup::Options().freeze_deadline : switched);
}

}  // namespace nbdelta::sim
