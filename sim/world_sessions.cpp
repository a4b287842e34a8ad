#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "client/backup/names.hpp"
#include "client/backup/offline.hpp"
#include "client/backup/overlay_files.hpp"
#include "sim/session_environment.hpp"
#include "sim/session_files.hpp"
#include "sim/world.hpp"

// The processes of nbdelta, the sessions that they are, and what an operator does after each.
namespace nbdelta::sim {

using namespace std::chrono_literals;
namespace backup = client::backup;

namespace {

constexpr Clock::Duration kLongestSession = 3h;  // of virtual time: nothing here takes that long

}  // namespace

/// All errors that may happen end where they are met: another one is a mistake.
void World::check_failure(const Process& process) {
  if (!process.failure())
    return;
  if (violation_)
    throw Violation(*violation_);
  try {
    std::rethrow_exception(process.failure());
  } catch (const std::exception& error) {
    violated(fmt::format("{}: {}", process.name(), error.what()));
  }
}

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
    check_failure(**it);
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
    check_failure(qemu_->process);
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
  const Clock::Time limit = time_.now() + kLongestSession;
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
    if (frozen_since_ && guardian_was_killed_ && process.stopped())
      frozen_since_ = time_.now();  // nobody is left who could thaw it: it begins anew
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
  if (frozen_since_ && guardian_was_killed_)
    frozen_since_ = time_.now();  // there was nobody who could thaw it: it begins anew
  if (held_since_ && stops_ == 0)
    stops_ = 1;  // whoever began that has ended, and this one may be stopped like it
  ++runs_;
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
  outcome_ = killed ? "nbdelta was killed" : kResultDone;
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
  options.direct = session.direct;
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
          if (std::any_of(plugins_.begin(), plugins_.end(),
                          [](const Plugin& plugin) { return plugin.direct; }))
            note("read without nbdkit");
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

void World::recover_with_faults(const std::vector<Fault>& faults) {
  ensure_guest();
  begin_faults(faults);
  run_recover(false);
  await_guardians();
  end_faults();
}

void World::recover_offline(const std::vector<std::size_t>& disks, bool must_work) {
  run_in_process(
      "recover --offline",
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        backup::Files& files = environment.files();
        std::optional<backup::Journal> journal = backup::read_journal(files, kFolder);
        for (const std::size_t i : disks) {
          backup::Settled settled = backup::recover_offline(environment, image_path(i), journal);
          if (!settled.problems.empty() && journal_is_in_doubt_) {
            log("   the operator knows that the overlay is right: " + settled.problems.front());
            for (const std::string& overlay : backup::overlays_over(files, image_path(i)))
              store_.image(overlay)->modified = store_.now;
            settled = backup::recover_offline(environment, image_path(i), journal);
          }
          for (const std::string& done : settled.done)
            log("   done: " + done);
          if (!settled.problems.empty())
            fail(EBUSY, "{}", settled.problems.front());
        }
        co_return;
      },
      must_work);
}

/// Those that check-start refuses, and whose guest is not started on an overlay.
std::vector<std::size_t> World::disks_to_recover() {
  const auto files = session_files(*this, user_);
  std::vector<std::size_t> disks;
  for (std::size_t i = 0; i < contents_.size(); ++i)
    if (!files->exists("/vm/nbdelta-current-" + std::string(backup::base_name(image_path(i)))) &&
        !backup::overlays_over(*files, image_path(i)).empty())
      disks.push_back(i);
  return disks;
}

/// As an operator does it: overlays that were not committed are, before the guest is started.
void World::ensure_guest() {
  for (int attempt = 0; !qemu_; ++attempt) {
    if (attempt == 3)
      violated("the guest cannot be started");
    end_faults();
    if (!disks_to_recover().empty() && !schedule_.offline_faults.empty()) {
      begin_faults(schedule_.offline_faults);
      recover_offline(disks_to_recover(), false);
      end_faults();
    }
    if (const std::vector<std::size_t> disks = disks_to_recover(); !disks.empty())
      recover_offline(disks, true);
    if (!qemu_)
      start_qemu();
  }
}

void World::run() {
  for (const SessionSetup& session : schedule_.sessions) {
    ensure_guest();
    write_now(session.writes_before, random_);
    begin_faults(session.faults);
    if (!frozen_since_ && !commit_is_ending()) {  // else the last one's have not done yet
      guardian_was_killed_ = false;
      stops_ = 0;
      if (held_since_)  // this session is the first that can put it right
        held_since_ = time_.now();
    }
    interrupted_ = listens_ = told_of_threshold_ = false;
    pulling_ = 0;
    if (recorder_ != nullptr)
      recorder_->begin_session(fmt::format("session {}", recorder_->run().sessions.size() + 1),
                               detail_);
    run_session(session);
    if (recorder_ != nullptr)
      recorder_->end_session(outcome_);
    await_guardians();
    check_space();
    end_faults();
    if (!unplugged_.empty())
      replug();
    if (session.recover_after) {
      if (!session.recover_faults.empty())
        recover_with_faults(session.recover_faults);
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
  schedule_.commit_deadline_ms = 600'000;  // what is slow here ends within that
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

}  // namespace nbdelta::sim
