#include "sim/world.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "client/backup/offline.hpp"
#include "client/backup/overlay_files.hpp"
#include "client/json_text.hpp"
#include "sim/session_environment.hpp"

namespace nbdelta::sim {

using namespace std::chrono_literals;
namespace backup = client::backup;
namespace repository = client::repository;

namespace {

constexpr Clock::Duration kLongestRun = 3h;  // of virtual time: nothing here takes that long
constexpr Clock::Duration kLongestFreeze = 60s;
constexpr Clock::Duration kLatestFreeze = 25s;
constexpr Clock::Duration kLongestHold = 15s;
constexpr Clock::Duration kStop = 90s;  // from SIGSTOP to SIGCONT
constexpr std::uint64_t kMostSteps = 20'000;
constexpr std::uint32_t kWritesOfARun = 60;
constexpr Clock::Duration kPullGranule = 200us;

/// Whether a session may have to go on without having seen the guest thaw. A guest that has no room
/// to write to does not come to an end with its freeze either.
bool disturbs_thaw(FaultKind kind) {
  static constexpr FaultKind kKinds[] = {
      FaultKind::kill_nbdelta,    FaultKind::kill_nbdelta_and_guardian,
      FaultKind::kill_guardian,   FaultKind::kill_nbdelta_and_qemu,
      FaultKind::kill_everything, FaultKind::freeze_slow,
      FaultKind::freeze_hangs,    FaultKind::freeze_fails,
      FaultKind::freeze_late,     FaultKind::agent_silent,
      FaultKind::base_full,       FaultKind::overlay_full};
  return std::find(std::begin(kKinds), std::end(kKinds), kind) != std::end(kKinds);
}

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
  look_on();
}

/// At the QEMU that has been started.
void World::look_on() {
  if (recorder_ == nullptr)
    return;
  QemuHooks& hooks = qemu_->fake.hooks();
  hooks.arrived = [this](const qapi::Command& command) { recorder_->arrived(kToQemu, command); };
  hooks.answered = [this](const std::string& error) { recorder_->answered(kToQemu, error); };
  FakeAgent& agent = qemu_->agent;
  agent.arrived = [this](const qapi::Command& command) { recorder_->arrived(kToAgent, command); };
  agent.answered = [this](const std::string& error) { recorder_->answered(kToAgent, error); };
  qemu_->guest.completed = [this](const Completed& each) { recorder_->completed(each); };
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
  look_on();
  FakeQemu& fake = qemu_->fake;
  if (!schedule_.old_qemu)
    fake.version() = {10, 0, 7};
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
  fake.hooks().after_command = [this](const qapi::Command& /*command*/) {
    AnswerFate fate;
    if (strike({FaultKind::answer_late})) {
      fate.delay = 200s;
      late_until_ = time_.now() + fate.delay;
    }
    fate.disconnect = strike({FaultKind::disconnect}).has_value();
    return fate;
  };
  fake.hooks().step = [this](std::string_view what) {
    step("QEMU: " + std::string(what), &qemu_->process);
  };
  fake.hooks().job_error = [this](const std::string& /*job*/) -> std::optional<std::string> {
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
  fake.hooks().switched = [this] {
    if (told_of_migration_)
      violated("the switch of a guest that is migrating");
    listens_ = true;
    switches_.push_back(contents_);
    note("switched");
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
      qemu_->guest.thaw();
    }
  };
  qemu_->agent.quiesce = [this] {
    if (qemu_->guest.dirty_bytes() != 0)
      note("a freeze that had something to write");
    return qemu_->guest.freeze();
  };
  qemu_->guest.failed = [this](const std::exception_ptr& /*error*/) {
    qemu_->fake.stop_on_error();
    note("guest paused: no space");
  };
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
      Node& node = fake.graph().open({.driver = format,
                                      .name = disk.by_drive ? "" : disk_name(i),
                                      .file_name = {},
                                      .path = path,
                                      .read_only = false,
                                      .no_backing = false,
                                      .direct = false});
      fake.graph().add_device(disk.by_drive ? disk_name(i) : "", disk_name(i), node);
    } catch (const BlockError& error) {
      violated(fmt::format("the guest does not start: {}: {}", path, error.what()));
    }
  }
  log("QEMU started");
  check_always();
  qemu_->guest.start();
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
  qemu_died_ = true;
  restarted_ = true;
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
  restarted_ = true;
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

// ---- Faults ----

std::optional<FaultKind> World::strike(std::initializer_list<FaultKind> kinds) {
  for (auto it = faults_.begin(); it != faults_.end(); ++it) {
    if (it->step > steps_ - session_start_ ||
        std::find(kinds.begin(), kinds.end(), it->kind) == kinds.end())
      continue;
    const FaultKind kind = it->kind;
    faults_.erase(it);
    thaw_is_disturbed_ |= disturbs_thaw(kind);
    log(fmt::format("!! {}", name_of(kind)));
    note(fmt::format("fault: {}", name_of(kind)));
    if (recorder_ != nullptr)
      recorder_->fault(name_of(kind));
    return kind;
  }
  return std::nullopt;
}

void World::step(const std::string& what, Process* self) {
  if (self != nullptr && self->doomed())
    return;
  if (++steps_ > kMostSteps)
    violated("it takes more steps than anything should");
  record_step();
  check_always();
  check_window(what, self);
  if (what.starts_with("write ") && what.ends_with("/manifest.json"))
    listens_ = false;  // it need not ask QEMU anything any more
  write_between(what, self);
  bool kill_nbdelta = false;
  bool kill_guardians = false;
  bool kill_plugins = false;
  while (const auto kind =
             strike({FaultKind::kill_nbdelta, FaultKind::kill_qemu, FaultKind::kill_plugin,
                     FaultKind::kill_guardian, FaultKind::kill_nbdelta_and_guardian,
                     FaultKind::kill_nbdelta_and_qemu, FaultKind::kill_everything,
                     FaultKind::interrupt, FaultKind::base_full, FaultKind::overlay_full,
                     FaultKind::agent_silent, FaultKind::guest_ends, FaultKind::unplug,
                     FaultKind::migration, FaultKind::stop_nbdelta})) {
    const auto is = [&](std::initializer_list<FaultKind> kinds) {
      return std::find(kinds.begin(), kinds.end(), *kind) != kinds.end();
    };
    const bool all = is({FaultKind::kill_everything});
    kill_nbdelta |= all || is({FaultKind::kill_nbdelta, FaultKind::kill_nbdelta_and_guardian,
                               FaultKind::kill_nbdelta_and_qemu});
    kill_guardians |= all || is({FaultKind::kill_guardian, FaultKind::kill_nbdelta_and_guardian});
    kill_plugins |= all || is({FaultKind::kill_plugin});
    kill_qemu_ |= all || is({FaultKind::kill_qemu, FaultKind::kill_nbdelta_and_qemu});
    interrupted_ |= is({FaultKind::interrupt});
    end_qemu_ |= is({FaultKind::guest_ends});
    unplug_ |= is({FaultKind::unplug});
    if (is({FaultKind::migration}) && qemu_) {
      migrating_ = true;
      qemu_->fake.set_migration("active");
    }
    if (is({FaultKind::stop_nbdelta}))
      stop_nbdelta();
    if (is({FaultKind::agent_silent}) && qemu_)
      qemu_->agent.silent = true;
    for (auto& [path, file] : store_.files())
      if (file.image && path.starts_with("/vm/") &&
          ((is({FaultKind::overlay_full}) && path.starts_with("/vm/nbdelta-")) ||
           (is({FaultKind::base_full}) && !path.starts_with("/vm/nbdelta-"))))
        file.image->full = true;
    if (kill_nbdelta || kill_qemu_)
      note(fmt::format("killed at: {}", what.substr(0, what.find(" /"))));
  }
  if (kill_plugins)
    for (Plugin& plugin : plugins_)
      kill_plugin(plugin);
  guardian_was_killed_ |= kill_guardians;
  if (kill_guardians)
    for (const auto& guardian : guardians_)
      guardian->doom();
  if (kill_nbdelta && nbdelta_)
    nbdelta_->doom();
  if (kill_qemu_ && qemu_) {
    qemu_->process.doom();
    if (self == &qemu_->process)
      throw Killed();
  }
}

void World::stop_nbdelta() {
  if (!nbdelta_)
    return;
  ++stops_;
  if (held_since_)
    note("stopped while a commit holds the guest's writes back");
  nbdelta_->stop();
  user_.spawn(let_nbdelta_go_on());
}

asio::awaitable<void> World::let_nbdelta_go_on() {
  co_await user_.clock().wait(kStop);
  if (nbdelta_)
    nbdelta_->go_on();
}

Clock::Duration World::pull_time(bool changed) {
  pulling_ += changed ? MemoryImage::kGranule : 0;
  return kPullGranule;
}

Process& World::start_guardian_process() {
  guardians_.push_back(std::make_unique<Process>(time_, "guardian"));
  return *guardians_.back();
}

/// What a session that died has left to them, before anybody comes to recover.
void World::await_guardians() {
  if (!qemu_ || guardian_was_killed_ || qemu_->agent.silent || !(frozen_since_ || held_since_))
    return;
  let_pass(kLongestFreeze);
  if (frozen_since_)
    violated("the guest stays frozen after the session");
  check_always();
}

void World::end_faults() {
  faults_.clear();
  interrupted_ = unplug_ = migrating_ = false;
  for (auto& [path, file] : store_.files())
    if (file.image)
      file.image->full = false;
  if (qemu_) {
    if (std::exchange(qemu_->agent.silent, false) && frozen_since_)
      frozen_since_ = time_.now();  // from here on somebody can thaw it
    qemu_->fake.go_on_after_error();
    qemu_->fake.set_migration("cancelled");
    qemu_->guest.resume();
    if (!guardians_.empty() && late_until_ > time_.now())  // one may wait for it, with QMP in use
      let_pass(late_until_ - time_.now());
    if (qemu_->agent.busy())  // a late freeze is a fault until it has come to its end
      let_pass(kLatestFreeze);
  }
}

// ---- Running ----

/// The dead are buried between two processes' turns.
void World::bury() {
  if (nbdelta_ && nbdelta_->alive() && nbdelta_->doomed()) {
    nbdelta_->kill();
    for (Plugin& plugin : plugins_)
      if (!plugin.outlives)
        kill_plugin(plugin);
    log("nbdelta killed");
  }
  for (auto it = guardians_.begin(); it != guardians_.end();) {
    if ((*it)->doomed())
      (*it)->kill();
    if (!(*it)->alive() || (*it)->ended())
      it = guardians_.erase(it);
    else
      ++it;
  }
  if (qemu_ && std::exchange(kill_qemu_, false))
    kill_qemu();
  if (qemu_ && std::exchange(end_qemu_, false))
    end_qemu();
  kill_qemu_ = end_qemu_ = false;
}

bool World::run_once() {
  bool ran = user_.run();
  if (nbdelta_) {
    ran |= nbdelta_->run();
    bury();
  }
  for (std::size_t i = 0; i < guardians_.size(); ++i) {
    ran |= (*std::next(guardians_.begin(), static_cast<std::ptrdiff_t>(i)))->run();
  }
  bury();
  if (qemu_) {
    ran |= qemu_->process.run();
    bury();
    unplug_when_due();
  }
  if (violation_)  // whoever met it may have kept the exception
    throw Violation(*violation_);
  store_.now =
      1'700'000'000 +
      std::chrono::duration_cast<std::chrono::seconds>(time_.now().time_since_epoch()).count();
  return ran;
}

void World::run_until_ended(Process& process) {
  const Clock::Time limit = time_.now() + kLongestRun;
  while (process.alive() && !process.ended()) {
    if (run_once())
      continue;
    if (!process.alive() || process.ended())
      break;
    if (!time_.advance())
      violated(fmt::format("{} waits for what never comes", process.name()));
    if (time_.now() > limit)
      violated(fmt::format("{} does not end", process.name()));
    check_held();
    if (frozen_since_ && time_.now() - *frozen_since_ > kLongestFreeze && qemu_ &&
        !qemu_->agent.silent)
      violated("the guest stays frozen");
  }
}

void World::let_pass(Clock::Duration duration) {
  const Clock::Time end = time_.now() + duration;
  while (time_.now() < end) {
    if (run_once())
      continue;
    if (!time_.advance())
      return;
  }
}

bool World::run_in_process(const std::string& what,
                           const std::function<asio::awaitable<void>(backup::Environment&)>& job,
                           bool must_work) {
  log(what);
  nbdelta_ = std::make_unique<Process>(time_, "nbdelta");
  const auto environment = session_environment(*this, *nbdelta_);
  nbdelta_->spawn(job(*environment));
  run_until_ended(*nbdelta_);
  const bool killed = !nbdelta_->alive();
  const std::exception_ptr failure = nbdelta_->failure();
  nbdelta_->kill();
  nbdelta_.reset();
  for (Plugin& plugin : plugins_)
    if (plugin.alive && !plugin.outlives)
      violated("nbdkit is left running");
  outcome_ = killed ? "nbdelta was killed" : kDone;
  if (killed)
    return false;
  if (!failure)
    return true;
  std::string& message = outcome_;
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    message = error.what();
  } catch (const std::exception& error) {
    violated(fmt::format("{}: an exception that is no Error: {}", what, error.what()));
  }
  log("   " + message);
  if (must_work)
    violated(fmt::format("{} fails though nothing is wrong any more: {}", what, message));
  return false;
}

backup::Options World::options(const SessionSetup& session) const {
  backup::Options options;
  options.qmp = "/run/vm.qmp";
  options.agent = "/run/vm.agent";
  if (schedule_.quiesce == "no")
    options.agent.reset();
  options.vm = "vm";
  options.folder = kFolder;
  options.external = session.external;
  options.full = session.full;
  options.quiesce = schedule_.quiesce == "no"        ? backup::Quiesce::no
                    : schedule_.quiesce == "require" ? backup::Quiesce::require
                                                     : backup::Quiesce::automatic;
  options.tracking = schedule_.by_overlay ? backup::Tracking::overlay : backup::Tracking::bitmap;
  options.commit_deadline = std::chrono::milliseconds(schedule_.commit_deadline_ms);
  if (session.external)
    options.listen.socket = "/run";
  return options;
}

void World::run_session(const SessionSetup& session) {
  const backup::Options options = this->options(session);
  backup::Reporter reporter;
  reporter.say = [this](const std::string& text) { log("   " + text); };
  if (!session.external) {
    run_in_process(
        "backup",
        [&](backup::Environment& environment) -> asio::awaitable<void> {
          backup::Session backup(environment, options, reporter);
          const backup::Report report = co_await backup.backup();
          note("backup: " + report.manifest.type);
          check_warnings(session, report);
        },
        false);
    return;
  }
  std::vector<backup::Exported> exports;
  const bool begun = run_in_process(
      "begin",
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        backup::Session backup(environment, options, reporter);
        exports = co_await backup.begin();
      },
      false);
  bool copied = false;
  if (begun) {
    note("begun");
    try {
      for (const backup::Exported& exported : exports)
        copy_export(*this, exported.uri, "/ext/" + exported.disk, "");
      copied = true;
    } catch (const Error& error) {
      log(fmt::format("   external copy: {}", error.what()));
    }
  }
  run_in_process(
      "end",
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        backup::Session backup(environment, options, reporter);
        co_await backup.end(copied && !session.fails ? backup::Session::Outcome::success
                                                     : backup::Session::Outcome::failure);
      },
      false);
}

void World::run_recover(bool must_work) {
  if (store_.folders().count(kFolder) == 0)
    return;  // no session came as far as that
  SessionSetup plain;
  const backup::Options options = this->options(plain);
  const backup::Reporter reporter;
  run_in_process(
      "recover",
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        backup::Session session(environment, options, reporter);
        const backup::Settled settled = co_await session.recover();
        for (const std::string& done : settled.done)
          log("   done: " + done);
        for (const std::string& problem : settled.problems)
          log("   problem: " + problem);
        if (must_work && !settled.problems.empty())
          fail(EIO, "{}", settled.problems.front());
      },
      must_work);
}

void World::recover_offline(const std::vector<std::size_t>& disks) {
  run_in_process(
      "recover --offline",
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        backup::Files& files = environment.files();
        std::optional<backup::Journal> journal = backup::read_journal(files, kFolder);
        for (const std::size_t i : disks) {
          const backup::Settled settled =
              backup::recover_offline(environment, image_path(i), journal);
          for (const std::string& done : settled.done)
            log("   done: " + done);
          if (!settled.problems.empty())
            fail(EBUSY, "{}", settled.problems.front());
        }
        co_return;
      },
      true);
}

/// As an operator does it: overlays that were not committed are, before the guest is started.
void World::ensure_guest() {
  for (int attempt = 0; !qemu_; ++attempt) {
    if (attempt == 3)
      violated("the guest cannot be started");
    end_faults();
    std::vector<std::size_t> disks;  // those that check-start refuses
    for (std::size_t i = 0; i < contents_.size(); ++i) {
      const std::string image(backup::base_name(image_path(i)));
      for (const auto& [path, file] : store_.files())
        if (path.starts_with("/vm/nbdelta-") && path.ends_with("-" + disk_name(i) + ".qcow2") &&
            store_.files().count("/vm/nbdelta-current-" + image) == 0) {
          disks.push_back(i);
          break;
        }
    }
    if (!disks.empty())
      recover_offline(disks);
    if (!qemu_)
      start_qemu();
  }
}

void World::run() {
  for (const SessionSetup& session : schedule_.sessions) {
    ensure_guest();
    write_now(session.writes_before, random_);
    session_start_ = steps_;
    faults_ = session.faults;
    interrupted_ = listens_ = told_of_threshold_ = false;
    pulling_ = 0;
    if (recorder_ != nullptr)
      recorder_->begin_session(fmt::format("session {}", recorder_->run().sessions.size() + 1),
                               detail_);
    run_session(session);
    if (recorder_ != nullptr)
      recorder_->end_session(outcome_);
    await_guardians();
    end_faults();
    if (!unplugged_.empty())
      replug();
    if (session.recover_after) {
      ensure_guest();
      run_recover(true);
    }
    check_points();
  }
  end_faults();
  ensure_guest();
  let_pass(5min);
  if (frozen_since_ && !guardian_was_killed_)
    violated("the guest is left frozen");
  run_recover(true);
  if (frozen_since_)
    violated("recover leaves the guest frozen");
  if (held_since_)
    violated("recover leaves the guest's writes held back");
  const std::size_t before = log_.size();
  run_recover(true);
  for (std::size_t i = before; i < log_.size(); ++i)
    if (log_[i].find("done:") != std::string::npos)
      violated("recover is not idempotent: " + log_[i]);
  write_now(5, random_);
  schedule_.commit_deadline_ms = 600'000;
  run_last_backup();
  write_now(5, random_);
  run_last_backup();  // what the first has left is built on
  check_clean();
}

void World::run_last_backup() {
  const SessionSetup plain;
  const backup::Options options = this->options(plain);
  const backup::Reporter reporter;
  run_in_process(
      "the last backup",
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        backup::Session session(environment, options, reporter);
        const backup::Report report = co_await session.backup();
        note("last backup: " + report.manifest.type);
      },
      true);
  check_points();
}

// ---- What must hold ----

/// No commit keeps the guest's writes waiting for long. Whoever puts that right may be killed, or
/// stopped with QEMU's one connection, like the first; then the next one does.
void World::check_held() {
  if (!qemu_ || qemu_->process.doomed()) {
    held_since_.reset();
    return;
  }
  const std::vector<Device>& devices = qemu_->fake.graph().devices();
  if (std::none_of(devices.begin(), devices.end(),
                   [&](const Device& device) { return qemu_->fake.drained(device); }))
    held_since_.reset();
  else if (!held_since_)
    held_since_ = time_.now();
  else if (time_.now() - std::max(*held_since_, qemu_->fake.stalled_until()) > kLongestHold &&
           !guardian_was_killed_ && stops_ < 2)
    violated("a commit holds the guest's writes back");
}

void World::check_always() {
  check_held();
  if (!guest_lives())
    return;
  const std::vector<Device>& devices = qemu_->fake.graph().devices();
  for (std::size_t i = 0; i < devices.size(); ++i)
    for (std::uint64_t granule = 0; granule < contents_[i].size(); ++granule) {
      const WriteNumber found = devices[i].unplugged
                                    ? read_unplugged(i, granule)
                                    : qemu_->fake.graph().read(*devices[i].root, granule);
      if (found != contents_[i][granule])
        violated(fmt::format("a write is lost: {} holds {} at granule {}, and {} was written",
                             disk_name(i), found, granule, contents_[i][granule]));
    }
}

WriteNumber World::read_file(const std::string& path, std::uint64_t granule) {
  for (std::string each = path;;) {
    const MemoryImage* image = store_.image(each);
    if (image == nullptr)
      violated(fmt::format("{} is no image", each));
    if (granule >= image->granules())
      return 0;
    if (image->held(granule) == Held::data)
      return image->read(granule);
    if (image->held(granule) == Held::zero || !image->backing())
      return 0;
    each = image->backing()->path;
  }
}

/// Each restore point is one instant of all disks, and stays it.
void World::check_points() {
  for (const auto& [path, file] : store_.files()) {
    constexpr std::string_view kManifest = "/manifest.json";
    if (!path.starts_with(std::string(kFolder) + "/") || !path.ends_with(kManifest))
      continue;
    repository::Manifest manifest;
    client::from_json_text(file.text, manifest, path);
    if (manifest.external)
      continue;
    const std::string folder = path.substr(0, path.size() - kManifest.size());
    bool found = false;
    std::string difference;
    for (auto at = switches_.rbegin(); at != switches_.rend() && !found; ++at) {
      found = true;
      for (std::size_t i = 0; i < contents_.size() && found; ++i) {
        const repository::DiskEntry* entry = manifest.find(disk_name(i));
        if (entry == nullptr && absent_.count(i) != 0)
          continue;
        if (entry == nullptr || !entry->file)
          violated(fmt::format("{}: has no {}", path, disk_name(i)));
        for (std::uint64_t granule = 0; granule < contents_[i].size() && found; ++granule) {
          const WriteNumber shown = read_file(folder + "/" + *entry->file, granule);
          if (shown == (*at)[i][granule])
            continue;
          found = false;
          if (difference.empty())
            difference = fmt::format("{} shows {} at granule {} where {} was", disk_name(i), shown,
                                     granule, (*at)[i][granule]);
        }
      }
    }
    if (!found)
      violated(fmt::format("{} shows no instant of the guest: {}", folder, difference));
  }
}

void World::check_clean() {
  if (!faults_.empty())
    return;
  for (const auto& node : qemu_->fake.graph().nodes())
    if (!schedule_.by_overlay && node->name.starts_with("nbdelta-"))
      violated("a node is left: " + node->name);
  if (!qemu_->fake.jobs().empty())
    violated("a job is left: " + qemu_->fake.jobs().front().id);
  if (!qemu_->fake.exports().empty() || qemu_->fake.nbd_server())
    violated("an export is left");
  std::size_t overlays = 0;
  std::vector<std::string> names;
  for (const auto& [path, file] : store_.files()) {
    if (path.starts_with("/vm/nbdelta-") && file.image) {
      ++overlays;
      names.push_back(path);
    }
    if (path.ends_with("/nbdelta-session.json"))
      violated("a journal is left");
  }
  if (overlays != (schedule_.by_overlay ? contents_.size() : 0))
    violated(fmt::format("{} overlays are left: {}", overlays, fmt::join(names, ", ")));
  for (const Plugin& plugin : plugins_)
    if (plugin.alive)
      violated("nbdkit is left: " + plugin.name);
  if (qemu_->agent.frozen())
    violated("the guest is left frozen");
}

}  // namespace nbdelta::sim
