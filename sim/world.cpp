#include "sim/world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "client/backup/names.hpp"

namespace nbdelta::sim {

using namespace std::chrono_literals;
namespace backup = client::backup;

namespace {

constexpr std::uint32_t kWritesOfARun = 60;
constexpr int kSlow = 40;  // times as long, where the storage is slow

}  // namespace

World::Qemu::Qemu(World& world, std::uint64_t seed)
    : process(world.time_, "QEMU"),
      fake(process.executor(), process.clock(), world.store_, seed),
      agent(process.executor(), process.clock()),
      disks(world),
      guest(process.executor(), process.clock(), disks, world.guest_setup(), seed) {}

World::Qemu::~Qemu() {
  guest.stop();
  process.kill();
}

World::World(const Schedule& schedule)
    : schedule_(schedule), random_(schedule.seed ^ 0x5eed), step_random_(schedule.seed ^ 0x57e9) {
  create_disks();
  start_qemu();
}

World::~World() {
  if (nbdelta_)
    nbdelta_->kill();
  for (const auto& guardian : guardians_)
    guardian->kill();
  qemu_.reset();
}

void World::log(std::string line) {
  log_.push_back(fmt::format(
      "{:12.6f} {}", std::chrono::duration<double>(time_.now().time_since_epoch()).count() - 3600,
      line));
}

void World::violated(const std::string& what) {
  if (qemu_)
    for (const auto& node : qemu_->fake.graph().nodes())
      log(fmt::format("   node {} {} {}{}{}", node->name, node->driver, node->path,
                      node->backing == nullptr ? "" : " over " + node->backing->name,
                      node->read_only ? " (read-only)" : ""));
  if (!violation_)
    violation_ = what;
  throw Violation(what);
}

// ---- The guest ----

std::string World::disk_name(std::size_t disk) const {
  return fmt::format("vd{:c}", static_cast<char>('a' + static_cast<int>(disk)));
}

std::string World::image_path(std::size_t disk) const {
  return fmt::format("/vm/{}.{}", disk_name(disk), schedule_.disks[disk].format);
}

void World::create_disks() {
  for (std::size_t i = 0; i < schedule_.disks.size(); ++i) {
    const DiskSetup& disk = schedule_.disks[i];
    contents_.emplace_back(disk.granules);
    MemoryImage& image = store_.create_image(image_path(i), disk.format, disk.granules);
    if (!disk.has_backing)
      continue;
    const std::string below = fmt::format("/vm/{}.below.qcow2", disk_name(i));
    MemoryImage& backing = store_.create_image(below, "qcow2", disk.granules);
    image.set_backing({below, "qcow2"});
    for (std::uint64_t granule = 0; granule < disk.granules; granule += 2) {
      backing.write(granule, ++last_write_);
      contents_[i][granule] = last_write_;
    }
    backing.flush();
  }
}

void World::record(RunRecorder& recorder, RunRecorder::Detail detail) {
  recorder_ = &recorder;
  detail_ = detail;
}

void World::record_step() {
  if (recorder_ == nullptr || detail_ != RunRecorder::Detail::all)
    return;
  std::uint64_t overlays = 0;
  for (const auto& [path, file] : store_.files())
    if (path.starts_with("/vm/nbdelta-") && file.image)
      overlays += file.image->allocated();
  recorder_->overlay(overlays);
  if (pulling_ != 0)
    recorder_->pulled(std::exchange(pulling_, 0));
}

void World::start_qemu() {
  ++starts_;
  qemu_ = std::make_unique<Qemu>(*this, schedule_.seed + starts_);
  if (!schedule_.old_qemu)
    qemu_->fake.version() = kQemu10;
  set_timing();
  connect_agent();
  connect_qemu();
  connect_guest();
  open_disks();
  log("QEMU started");
  check_always();
  qemu_->guest.start();
}

void World::connect_agent() {
  qemu_->agent.arrived = [this](const qapi::Command& command) {
    if (recorder_ != nullptr)
      recorder_->arrived(kToAgent, command);
    agent_command_ = command.name;
    on_agent_step("agent: " + command.name);
  };
  qemu_->agent.answered = [this](const std::string& error) {
    if (recorder_ != nullptr)
      recorder_->answered(kToAgent, error);
    on_agent_step("agent has answered " + agent_command_);
  };
  qemu_->agent.refusal = [this]() -> std::optional<std::string> {
    if (strike({FaultKind::agent_error}))
      return "a fault of the simulator";
    return std::nullopt;
  };
  qemu_->agent.freeze = [this] {
    FreezeBehaviour behaviour;
    const auto fault = strike({FaultKind::freeze_slow, FaultKind::freeze_hangs,
                               FaultKind::freeze_fails, FaultKind::freeze_late});
    if (!fault)
      return behaviour;
    if (*fault == FaultKind::freeze_slow)
      behaviour.time = 7s;
    else if (*fault == FaultKind::freeze_late)
      behaviour.time = kLatestFreeze;
    else if (*fault == FaultKind::freeze_fails)
      behaviour.error = "failed to freeze /: Input/output error";
    else
      behaviour.answers = false;
    return behaviour;
  };
  qemu_->agent.changed = [this](bool frozen) {
    log(frozen ? "frozen" : "thawed");
    note(frozen ? "frozen" : "thawed");
    if (recorder_ != nullptr)
      recorder_->frozen(frozen);
    if (frozen) {
      frozen_since_ = time_.now();
    } else {
      frozen_since_.reset();
      others_may_connect_ = false;
      qemu_->guest.thaw();
    }
  };
  qemu_->agent.quiesce = [this] {
    if (qemu_->guest.dirty_bytes() != 0)
      note("a freeze that had something to write");
    return qemu_->guest.freeze();
  };
}

void World::connect_qemu() {
  FakeQemu& fake = qemu_->fake;
  fake.hooks().arrived = [this](const qapi::Command& command) {
    if (recorder_ != nullptr)
      recorder_->arrived(kToQemu, command);
  };
  fake.hooks().answered = [this](const std::string& error) {
    if (recorder_ != nullptr)
      recorder_->answered(kToQemu, error);
  };
  fake.hooks().before_command = [this](const qapi::Command& command) -> std::optional<std::string> {
    log("-> " + command.name);
    step("command " + command.name, &qemu_->process);
    if (command.name == qapi::BlockDirtyBitmapRemove::kName)
      check_removal(CommandTable::read<qapi::BlockDirtyBitmapRemove>(command.arguments));
    if (command.name == qapi::QueryMigrate::kName)
      told_of_migration_ = migrating_;
    if (strike({FaultKind::command_error}))
      return "a fault of the simulator";
    return std::nullopt;
  };
  fake.hooks().after_command = [this](const qapi::Command& command) {
    AnswerFate fate;
    current_step_ = "command " + command.name;
    if (strike({FaultKind::answer_late})) {
      fate.delay = 200s;
      late_until_ = time_.now() + fate.delay;
    }
    fate.disconnect = strike({FaultKind::disconnect}).has_value();
    others_may_connect_ |= fate.disconnect && frozen_since_;
    return fate;
  };
  fake.hooks().step = [this](std::string_view what) {
    step("QEMU: " + std::string(what), &qemu_->process);
  };
  fake.hooks().job_error = [this](const std::string& /*job*/) -> std::optional<std::string> {
    const bool noticed_late =
        (nbdelta_ && nbdelta_->stopped()) || schedule_.latencies.message_us != 0;
    if (held_since_ && noticed_late)
      return std::nullopt;  // see "What is not explored" in docs/simulator.md
    if (strike({FaultKind::job_error}))
      return "Input/output error";
    return std::nullopt;
  };
  fake.hooks().event = [this](const std::string& name, const qapi::json::object& data) {
    see_event(name, data);
  };
  fake.hooks().aborted = [this](const std::string& assertion) {
    violated("QEMU aborts: " + assertion);
  };
  fake.hooks().switched = [this] { on_switch(); };
}

void World::connect_guest() {
  qemu_->guest.completed = [this](const Completed& each) {
    if (recorder_ != nullptr)
      recorder_->completed(each);
  };
  qemu_->guest.failed = [this](const std::exception_ptr& /*error*/) {
    qemu_->fake.stop_on_error();
    note("guest paused: no space");
  };
}

/// As a start script does after backups with overlays that stay.
void World::open_disks() {
  for (std::size_t i = 0; i < schedule_.disks.size(); ++i) {
    const DiskSetup& disk = schedule_.disks[i];
    std::string path = image_path(i);
    std::string format = disk.format;
    const auto current =
        store_.files().find("/vm/nbdelta-current-" + std::string(backup::base_name(path)));
    if (current != store_.files().end()) {
      path = current->second.text.substr(0, current->second.text.find('\n'));
      format = "qcow2";
    }
    try {
      Node& node = qemu_->fake.graph().open({.driver = format,
                                             .name = disk.by_drive ? "" : disk_name(i),
                                             .file_name = {},
                                             .path = path,
                                             .read_only = false,
                                             .no_backing = false,
                                             .direct = false});
      qemu_->fake.graph().add_device(disk.by_drive ? disk_name(i) : "", disk_name(i), node);
    } catch (const BlockError& error) {
      violated(fmt::format("the guest does not start: {}: {}", path, error.what()));
    }
  }
}

void World::on_switch() {
  if (told_of_migration_)
    violated("the switch of a guest that is migrating");
  listens_ = true;
  std::optional<backup::SessionId> session;  // the newest that has an overlay
  for (const auto& node : qemu_->fake.graph().nodes())
    if (const auto each = backup::session_of(node->name))
      if (!session || each->number > session->number)
        session = each;
  if (!session)
    violated("a snapshot that is no session's");
  switches_.push_back({*session, contents_, {}});
  for (const auto& [disk, chain] : unplugged_)
    switches_.back().absent.insert(disk);
  note("switched");
}

/// The agent has no turn of its own that a crash of QEMU could end: that comes with the next one.
void World::on_agent_step(const std::string& what) {
  log("   " + what);
  step(what, nullptr);
}

void World::set_timing() {
  using Us = std::chrono::microseconds;
  const Latencies& latencies = schedule_.latencies;
  const Us granule(latencies.granule_us * (storage_is_slow_ ? kSlow : 1));
  Timing& timing = qemu_->fake.timing();
  timing.command = Us(latencies.command_us);
  timing.snapshot = Us(latencies.snapshot_us);
  timing.job_granule = granule * 5 / 2;
  timing.export_end = Us(latencies.export_end_us);
  qemu_->agent.command_time = Us(latencies.agent_us);
  qemu_->agent.thaw_time = Us(latencies.thaw_us);
}

void World::kill_qemu() {
  qemu_->guest.stop();
  qemu_->process.kill();
  for (const auto& node : qemu_->fake.graph().nodes())
    if (node->is_format() && !node->read_only)
      if (MemoryImage* image = store_.image(node->path))
        image->lose_unflushed();
  qemu_->fake.die();
  qemu_.reset();
  frozen_since_.reset();
  if (recorder_ != nullptr)
    recorder_->frozen(false);
  unplugged_.clear();
  log("QEMU killed");
}

void World::end_qemu() {
  qemu_->guest.stop();
  qemu_->process.kill();
  qemu_->fake.graph().shut_down();
  qemu_.reset();
  frozen_since_.reset();
  if (recorder_ != nullptr)
    recorder_->frozen(false);
  unplugged_.clear();
  log("QEMU ended");
}

GuestSetup World::guest_setup() const {
  GuestSetup setup;
  LoadSetup load;
  load.pattern = schedule_.pattern;
  load.direct = schedule_.direct;
  load.request = MemoryImage::kGranule / (schedule_.odd ? 4 : 1) * (schedule_.odd ? 5 : 1);
  load.rate = load.request * 1'000'000 / schedule_.write_pause_us;
  load.zero_share = 0.1;
  load.discard_share = 0.05;
  load.sync_every = 8;
  for (std::size_t disk = 0; disk < schedule_.disks.size(); ++disk)
    setup.loads.push_back({disk, load});
  setup.most_requests = kWritesOfARun / schedule_.disks.size();
  setup.cache.expire = std::chrono::milliseconds(schedule_.expire_ms);
  setup.cache.interval = setup.cache.expire / 2;
  return setup;
}

/// `number`: 0 for zeros. Whatever a dead guest still does has no effect.
void World::guest_write(std::size_t disk, std::uint64_t granule, WriteNumber number,
                        const WriteDone& done) {
  if (!guest_lives())
    return;
  if (qemu_->agent.frozen())
    violated("the guest writes while it is frozen");
  if (unplugged_.count(disk) != 0) {
    done(nullptr);  // its programs have an error, and nobody was told that it was written
    return;
  }
  Device& device = qemu_->fake.graph().devices()[disk];
  if (qemu_->fake.drained(device))
    note("a write of the guest held back");
  qemu_->fake.write(device, {granule, number},
                    [this, disk, granule, number, done](const std::exception_ptr& error) {
                      if (!error)
                        contents_[disk][granule] = number;
                      done(error);
                    });
}

/// At once, whatever the guest's programs do.
void World::write_now(std::uint64_t count, Random& random) {
  for (std::uint64_t i = 0; i < count; ++i) {
    if (!guest_lives() || qemu_->agent.frozen() || qemu_->guest.paused())
      return;
    const std::size_t disk = random.below(contents_.size());
    const std::uint64_t granule = random.below(contents_[disk].size());
    const bool zero = random.chance(15);
    guest_write(disk, granule, zero ? 0 : ++last_write_, [](const std::exception_ptr&) {});
  }
}

/// The guest's writes fall between whatever two things a session does. Not into the middle of a
/// command: while that is carried out, QEMU holds them back.
void World::write_between(const std::string& what, const Process* self) {
  const bool between = what.starts_with("command ") || (nbdelta_ && self == nbdelta_.get());
  if (between && step_random_.chance(schedule_.writes_at_steps))
    write_now(1, step_random_);
}

// ---- What sessions have of it ----

Clock::Duration World::pull_time(bool changed) {
  pulling_ += changed ? MemoryImage::kGranule : 0;
  return std::chrono::microseconds(schedule_.latencies.granule_us) * (storage_is_slow_ ? kSlow : 1);
}

Costs World::costs() const {
  return {.message = std::chrono::microseconds(schedule_.latencies.message_us),
          .file_change = std::chrono::microseconds(schedule_.latencies.file_change_us),
          .start = {}};
}

Process& World::start_guardian_process() {
  guardians_.push_back(std::make_unique<Process>(time_, "guardian"));
  return *guardians_.back();
}

}  // namespace nbdelta::sim
