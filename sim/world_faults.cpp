#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "sim/world.hpp"

// What goes wrong in a schedule: when it does, what comes of it, and how it ends.
namespace nbdelta::sim {

using namespace std::chrono_literals;

namespace {

constexpr Clock::Duration kStop = 90s;  // from SIGSTOP to SIGCONT
constexpr std::string_view kJournal = "/nbdelta-session.json";
constexpr std::uint64_t kMostSteps = 20'000;

/// Whether a session may have to go on without having seen the guest thaw. A guest that has no room
/// to write to does not come to an end with its freeze either.
bool disturbs_thaw(FaultKind kind) {
  static constexpr FaultKind kKinds[] = {
      FaultKind::kill_nbdelta,    FaultKind::kill_nbdelta_and_guardian,
      FaultKind::kill_guardian,   FaultKind::kill_nbdelta_and_qemu,
      FaultKind::kill_everything, FaultKind::freeze_slow,
      FaultKind::freeze_hangs,    FaultKind::freeze_fails,
      FaultKind::freeze_late,     FaultKind::agent_silent,
      FaultKind::base_full,       FaultKind::overlay_full,
      FaultKind::agent_error};
  return std::find(std::begin(kKinds), std::end(kKinds), kind) != std::end(kKinds);
}

}  // namespace

std::optional<FaultKind> World::strike(std::initializer_list<FaultKind> kinds) {
  for (auto it = faults_.begin(); it != faults_.end(); ++it) {
    if (it->step > steps_ - session_start_ || (!it->at.empty() && it->at != current_step_) ||
        std::find(kinds.begin(), kinds.end(), it->kind) == kinds.end())
      continue;
    const FaultKind kind = it->kind;
    faults_.erase(it);
    thaw_is_disturbed_ |= disturbs_thaw(kind);
    journal_is_in_doubt_ |= kind == FaultKind::file_error && current_step_.ends_with(kJournal);
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
  current_step_ = what;
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
                     FaultKind::migration, FaultKind::stop_nbdelta, FaultKind::storage_slow})) {
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
    if (is({FaultKind::storage_slow}) && qemu_) {
      storage_is_slow_ = true;
      set_timing();
    }
    if (is({FaultKind::agent_silent}) && qemu_)
      qemu_->agent.silent = true;
    for (auto& [path, file] : store_.files())
      if (file.image && path.starts_with("/vm/") &&
          ((is({FaultKind::overlay_full}) && path.starts_with("/vm/nbdelta-")) ||
           (is({FaultKind::base_full}) && !path.starts_with("/vm/nbdelta-"))))
        file.image->full = true;
    if (name_of(*kind).starts_with("kill"))
      note(fmt::format("{} at: {}", name_of(*kind), what.substr(0, what.find(" /"))));
  }
  if (kill_plugins)
    for (Plugin& plugin : plugins_)
      if (!plugin.direct)
        kill_plugin(plugin);
  guardian_was_killed_ |= kill_guardians;
  if (kill_guardians)
    for (const auto& guardian : guardians_)
      guardian->doom();
  if (kill_nbdelta && nbdelta_) {
    nbdelta_->doom();
    if (commit_is_ending())
      ++stops_;
  }
  if (kill_qemu_ && qemu_) {
    qemu_->process.doom();
    if (self == &qemu_->process)
      throw Killed();
  }
}

bool World::commit_is_ending() const {
  return qemu_ && std::any_of(qemu_->fake.jobs().begin(), qemu_->fake.jobs().end(),
                              [](const Job& job) { return job.complete; });
}

void World::stop_nbdelta() {
  if (!nbdelta_)
    return;
  ++stops_;
  if (held_since_)
    note("stopped while a commit holds the guest's writes back");
  nbdelta_->stop();
  user_.spawn(let_nbdelta_go_on(runs_));
}

/// The one that was stopped: by then another may run.
asio::awaitable<void> World::let_nbdelta_go_on(std::uint64_t run) {
  co_await user_.clock().wait(kStop);
  if (nbdelta_ && run == runs_)
    nbdelta_->go_on();
}

/// What a session that died has left to them, before anybody comes to recover.
void World::await_guardians() {
  if (!qemu_ || guardian_was_killed_ || qemu_->agent.silent || !(frozen_since_ || held_since_))
    return;
  let_pass(kLongestFreeze);
  if (frozen_since_ && !(qemu_ && qemu_->agent.silent))
    violated("the guest stays frozen after the session");
  check_always();
}

void World::begin_faults(const std::vector<Fault>& faults) {
  session_start_ = steps_;
  faults_ = faults;
}

void World::end_faults() {
  faults_.clear();
  interrupted_ = unplug_ = migrating_ = storage_is_slow_ = false;
  for (auto& [path, file] : store_.files())
    if (file.image)
      file.image->full = false;
  if (qemu_) {
    set_timing();
    if (std::exchange(qemu_->agent.silent, false) && frozen_since_)
      frozen_since_ = time_.now();  // from here on somebody can thaw it
    qemu_->fake.go_on_after_error();
    qemu_->fake.set_migration("cancelled");
    qemu_->guest.resume();
    if (!guardians_.empty() && late_until_ > time_.now())  // one may wait for it, with QMP in use
      let_pass(late_until_ - time_.now());
    // A late freeze is a fault until it has come to its end, and so are the thaws behind it.
    for (int i = 0; i < 4 && qemu_->agent.busy(); ++i)
      let_pass(kLatestFreeze);
  }
  // Else the next session comes upon a guest that is frozen, or is about to be.
  if (!frozen_since_ && !(qemu_ && qemu_->agent.busy()))
    thaw_is_disturbed_ = false;
}

}  // namespace nbdelta::sim
