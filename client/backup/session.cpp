#include "client/backup/session.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <exception>
#include <set>
#include <string_view>
#include <utility>

#include "client/backup/breaks.hpp"
#include "client/json_text.hpp"
#include "qapi/export_commands.hpp"
#include "qapi/job_commands.hpp"

namespace nbdelta::client::backup {
namespace {

using repository::DiskEntry;
using repository::Repository;

/// What a session cannot do without (QEMU 6.1 has all of it).
constexpr const char* kNeeded[] = {"blockdev-add",     "blockdev-del",
                                   "transaction",      "block-dirty-bitmap-merge",
                                   "block-commit",     "query-named-block-nodes",
                                   "job-complete",     "job-finalize",
                                   "job-dismiss",      "change-backing-file",
                                   "block-export-add", "query-block-exports",
                                   "query-jobs",       "block-set-write-threshold",
                                   "blockdev-reopen"};

/// Whether an image could not be opened since somebody writes to it (image/image_lock.cpp).
bool is_written(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    return std::string_view(error.what()).find("open for writing") != std::string_view::npos;
  }
}

/// For the message about a session that failed.
std::string outcome_of(const Settled& settled) {
  const std::string guest = settled.space.empty() ? "the guest runs as before" : settled.space;
  if (settled.overlay_kept)
    return (settled.space.empty() ? std::string() : guest + "; ") +
           "an overlay stays in place; the next backup or 'nbdelta recover' goes on with it";
  if (!settled.gaps.empty())
    return fmt::format(
        "{}; the next backup is a full of {}, whose bitmap was disabled and has a gap", guest,
        fmt::join(settled.gaps, ", "));
  return guest + "; the next backup has what this one would have had";
}

/// The file of a disk in the folder of its restore point.
PreviousFile previous_file(Files& files, const std::string& folder, const DiskEntry& entry) {
  PreviousFile previous;
  if (!entry.file) {
    previous.trouble = "its file of the last restore point is gone";
    return previous;
  }
  try {
    previous.chain = files.chain_length(folder + "/" + *entry.file);
  } catch (const Error& error) {
    previous.trouble =
        files.exists(folder + "/" + *entry.file)
            ? fmt::format(
                  "{} of the last restore point cannot be opened with all that it rests on ({})",
                  *entry.file, error.what())
            : fmt::format("{} of the last restore point is gone", *entry.file);
  }
  return previous;
}

std::string version_text(const qapi::Greeting& greeting) {
  return fmt::format("{}.{}.{}", greeting.major, greeting.minor, greeting.micro);
}

}  // namespace

Session::Session(Environment& environment, const Options& options, const Reporter& reporter)
    : environment_(&environment),
      options_(&options),
      reporter_(&reporter),
      quiescence_(environment, options) {}

Repository Session::repository() {
  return Repository(environment_->files(), options_->folder);
}

void Session::save_journal() {
  environment_->files().write_text(journal_path(options_->folder), to_json_text(*journal_));
}

void Session::enter(std::string_view phase) {
  journal_->phase = phase;
  journal_->since = environment_->wall_clock();
  save_journal();
}

void Session::check_stop() const {
  if (environment_->stop_requested())
    fail(EINTR, "interrupted");
}

asio::awaitable<void> Session::open_channel() {
  qmp_.reset();
  qmp_ = std::make_unique<qmp::Client>(co_await environment_->connect_qmp(options_->qmp),
                                       environment_->clock());
  qmp_->watch([this](const qapi::Event& event) { take_note(event); });
}

asio::awaitable<void> Session::connect() {
  co_await open_channel();
  const qapi::Greeting greeting = co_await qmp_->open();
  manifest_.qemu_version = version_text(greeting);
  co_await check_commands(greeting);
}

asio::awaitable<void> Session::check_commands(const qapi::Greeting& greeting) {
  std::set<std::string> known;
  const auto commands = co_await qmp_->call(qapi::QueryCommands{});
  for (const qapi::CommandInfo& command : commands)
    known.insert(command.name);
  for (const char* needed : kNeeded)
    if (!known.count(needed))
      refuse(ENOSYS, "QEMU {} is too old: it has no command {} (6.1 has all that is needed)",
             version_text(greeting), needed);
}

asio::awaitable<void> Session::check_not_migrating() {
  const qapi::RunState state = co_await qmp_->call(qapi::QueryStatus{});
  const qapi::MigrationInfo migration = co_await qmp_->call(qapi::QueryMigrate{});
  static const std::set<std::string> kMigrating{"setup",      "active",     "postcopy-active",
                                                "device",     "cancelling", "pre-switchover",
                                                "wait-unplug"};
  if (state.status == "inmigrate" || state.status == "postmigrate" ||
      state.status == "finish-migrate" || kMigrating.count(migration.status.value_or("")))
    refuse(EBUSY, "the guest is migrating ({}); try again when it has arrived",
           migration.status.value_or(state.status));
}

/// After an earlier session was put right, which may have left the guest stopped.
asio::awaitable<void> Session::check_running() {
  const qapi::RunState state = co_await qmp_->call(qapi::QueryStatus{});
  if (state.running)
    co_return;
  if (options_->quiesce == Quiesce::require)
    refuse(EBUSY, "the guest does not run ({}): it cannot be frozen", state.status);
  warnings_.push_back(fmt::format("the guest does not run ({}): no freeze", state.status));
  reporter_->say(warnings_.back());
}

/// An address may be mistaken for another guest's, whose session would be torn down for nothing.
/// QEMU may have been started again, or the guest migrated, elsewhere: its images have the same
/// paths. Where the address is the session's, all of its disks may have been unplugged.
asio::awaitable<void> Session::check_is_sessions_guest() {
  if (!journal_ || journal_->disks.empty() || journal_->qmp == options_->qmp)
    co_return;
  std::set<std::string> open;
  const qapi::QueryNamedBlockNodes query{.flat = true};
  const auto nodes = co_await qmp_->call(query);
  for (const qapi::NodeInfo& node : nodes)
    open.insert(environment_->files().canonical(options_->paths.to_local(path_of(node.image))));
  std::vector<std::string> expected;
  for (const JournalDisk& disk : journal_->disks) {
    if (open.count(disk.base_local) || open.count(disk.overlay_local))
      co_return;
    expected.push_back(disk.base_path);
  }
  refuse(EINVAL,
         "the guest at {} is not that of the session, which was begun at {}: none of the session's "
         "disks is there ({})",
         options_->qmp, journal_->qmp, fmt::join(expected, ", "));
}

void Session::check_not_open() const {
  if (journal_ && journal_->external && journal_->phase == phase::kExport)
    refuse(EBUSY,
           "a session of external software is open since {}: end it with 'nbdelta end --success' "
           "or 'nbdelta end --failure'",
           journal_->started);
}

/// Puts right what earlier sessions have left. Throws Refused where one is open on purpose.
asio::awaitable<void> Session::settle_leftover() {
  check_not_open();
  co_await check_is_sessions_guest();
  const bool in_place = co_await overlays_are_in_place();
  if (in_place) {
    reporter_->say("the overlay of an earlier session is still in place: going on with it");
    open_chain_ = journal_->chain;
    journal_.reset();
    co_return;
  }
  if (journal_) {
    reporter_->say(
        fmt::format("an earlier session ({}, begun {}) has not ended: putting it right first",
                    journal_->number, journal_->started));
  }
  const Settled settled = co_await settle();
  for (const std::string& done : settled.done)
    reporter_->say(done);
  if (!settled.problems.empty())
    fail(EBUSY, "{}", settled.problems.front());
  gaps_ = settled.gaps;
  journal_.reset();
}

/// The first thing after a crash, before QEMU is asked for anything. Says what came of it.
asio::awaitable<std::string> Session::thaw_leftover() {
  const Suspicion suspicion = may_be_frozen() ? Suspicion::frozen : Suspicion::none;
  std::optional<std::string> agent = options_->agent;
  if (!agent && journal_)
    agent = journal_->agent;
  if (!agent)
    co_return std::string();
  std::string why;
  try {
    const std::int64_t thawed = co_await quiescence_.release(*agent, suspicion);
    if (thawed > 0)
      co_return fmt::format("thawed {} file systems of the guest", thawed);
    co_return std::string();
  } catch (const Error& error) {
    why = error.what();
  }
  co_return fmt::format("whether the guest is frozen cannot be told: {}", why);
}

/// By a session that died in its window, perhaps with its guardian.
bool Session::may_be_frozen() const {
  return journal_ && (journal_->phase == phase::kWindow || journal_->may_be_frozen.value_or(false));
}

asio::awaitable<void> Session::thaw_window() {
  if (!may_be_frozen())
    co_return;
  const std::string thawed = co_await thaw_leftover();
  if (!thawed.empty())
    reporter_->say(thawed);
}

/// Of a session whose commit did not end: nothing need be tried again.
asio::awaitable<bool> Session::overlays_are_in_place() {
  if (!journal_ || journal_->phase != phase::kKept)
    co_return false;
  const Inventory inventory = co_await query_inventory(*qmp_, *environment_, options_->paths);
  std::set<std::string> stacked;
  for (const GuestDisk& disk : inventory.disks)
    for (const StackedOverlay& overlay : disk.overlays)
      stacked.insert(overlay.local);
  for (const JournalDisk& disk : journal_->disks)
    if (environment_->files().exists(disk.overlay_local) && !stacked.count(disk.overlay_local))
      co_return false;
  co_return true;
}

asio::awaitable<Plan> Session::make_plan_now() {
  Repository points = repository();
  Situation situation;
  situation.inventory = co_await query_inventory(*qmp_, *environment_, options_->paths);
  situation.latest = points.latest();
  situation.highest_number = points.highest_number();
  const std::string open_chain = journal_ ? journal_->chain : open_chain_;
  situation.session_is_open = !open_chain.empty();
  situation.gaps = gaps_;
  situation.new_chain = open_chain.empty() ? chain_name(environment_->random()) : open_chain;
  if (qmp_->major() < 9) {
    // nbd_blockdev_client_closed() asserts that it runs in the main thread.
    const auto iothreads = co_await qmp_->call(qapi::QueryIothreads{});
    situation.exports_abort_qemu = !iothreads.empty();
  }
  if (situation.latest)
    previous_point_ = Repository::folder_name(situation.latest->number, situation.latest->type);
  const std::string folder = points.point_folder(previous_point_);
  situation.previous_file = [this, folder](const DiskEntry& entry) {
    return previous_file(environment_->files(), folder, entry);
  };
  co_return make_plan(situation, *options_);
}

asio::awaitable<Forecast> Session::forecast() {
  co_await connect();
  co_await check_not_migrating();
  co_await check_running();
  Forecast forecast;
  journal_ = read_journal(environment_->files(), options_->folder);
  check_not_open();
  if (journal_)
    forecast.notes.push_back(fmt::format(
        "an earlier session ({}) has not ended: it would be put right first", journal_->number));
  forecast.plan = co_await make_plan_now();
  for (const DiskPlan& disk : forecast.plan.disks)
    check_image(disk.disk);
  forecast.notes.insert(forecast.notes.end(), warnings_.begin(), warnings_.end());
  co_return forecast;
}

/// Everything before the first change.
asio::awaitable<void> Session::open_session() {
  Repository points = repository();
  lock_ = points.lock();
  journal_ = read_journal(environment_->files(), options_->folder);
  co_await thaw_window();
  co_await connect();
  co_await check_not_migrating();
  co_await settle_leftover();
  co_await check_running();
  points.remove_unfinished();
  plan_ = co_await make_plan_now();
  for (const std::string& note : plan_.notes)
    reporter_->say(note);
  manifest_.type = plan_.type();
  for (std::size_t i = 0; i < plan_.disks.size(); ++i) {
    Disk disk;
    disk.plan = std::move(plan_.disks[i]);
    disk.index = i;
    if (disk.plan.reason)
      reporter_->say(
          fmt::format("{}: a full backup, because {}", disk.plan.disk.name, *disk.plan.reason));
    disks_.push_back(std::move(disk));
  }
  plan_.disks.clear();
  fill_manifest();
}

asio::awaitable<Settled> Session::settle() {
  for (Disk& disk : disks_)
    if (disk.server && !broken("commit-while-served"))
      disk.server->stop();
  std::optional<Repository> points;
  if (!options_->folder.empty())
    points.emplace(repository());
  Settler settler(*environment_, *qmp_, *options_, points ? &*points : nullptr);
  Settled settled = co_await settler.settle(journal_);
  if (!settled.space.empty())
    warnings_.push_back(settled.space);
  co_return settled;
}

/// QEMU may have dropped the connection and yet be there.
asio::awaitable<void> Session::reconnect() {
  co_await open_channel();
  co_await qmp_->open();
}

/// Returns what came of it, for the message about the failure.
asio::awaitable<std::string> Session::settle_after_failure() {
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      if (attempt != 0)
        co_await reconnect();
      repository().remove_unfinished();
      const Settled settled = co_await settle();
      if (!settled.problems.empty())
        co_return settled.problems.front();
      co_return outcome_of(settled);
    } catch (const Error& error) {
      if (attempt != 0)
        co_return fmt::format(
            "QEMU cannot be asked to put things right ({}): run 'nbdelta recover', with --offline "
            "for each disk if the guest has ended",
            error.what());
    }
  }
  co_return std::string();
}

asio::awaitable<void> Session::run_to_export() {
  co_await open_session();
  std::exception_ptr failure;
  try {
    co_await prepare();
    check_stop();
    co_await window();
    co_await export_all();
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure)
    co_await fail_session(failure);
}

/// What to throw for a base that could not be read since QEMU goes on writing to it below an
/// overlay: with copy-on-read of a -drive, which it does not show.
asio::awaitable<std::exception_ptr> Session::explain(std::exception_ptr failure) {
  if (journal_->phase == phase::kPrepare || !is_written(failure))
    co_return failure;
  try {
    const qapi::QueryNamedBlockNodes query_named_block_nodes{.flat = true};
    const auto nodes = co_await qmp_->call(query_named_block_nodes);
    for (const Disk& disk : disks_) {
      const GuestDisk& guest = disk.plan.disk;
      for (const qapi::NodeInfo& node : nodes)
        if (node.node_name == guest.base_node && !node.read_only)
          refuse(ENOTSUP,
                 "{}: cannot be backed up: QEMU may write to {} also below an overlay, as it does "
                 "where the guest was started with copy-on-read=on; start it without, or leave the "
                 "disk out with --exclude {}",
                 guest.name, guest.base_path, guest.name);
    }
  } catch (const Refused&) {
    failure = std::current_exception();
  } catch (const Error&) {  // then it stays unexplained
  }
  co_return failure;
}

/// Puts things right, then throws what went wrong together with what came of that.
asio::awaitable<void> Session::fail_session(std::exception_ptr failure) {
  std::string after = "nothing was touched";
  if (journal_) {
    failure = co_await explain(failure);
    after = co_await settle_after_failure();
  }
  try {
    std::rethrow_exception(failure);
  } catch (const Refused& error) {
    throw Refused(error.error_number(), error.what() + ("; " + after));
  } catch (const Error& error) {
    fail(error.error_number(), "{}; {}", error.what(), after);
  }
}

asio::awaitable<Report> Session::backup() {
  co_await run_to_export();
  std::exception_ptr failure;
  try {
    if (broken("manifest-before-data"))
      repository().publish(journal_->point, manifest_);
    co_await either(pull_all(), receive_events());
    check_stop();
    for (Disk& disk : disks_)
      manifest_.disks.push_back(disk.entry);
    repository().publish(journal_->point, manifest_);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure)
    co_await fail_session(failure);

  Report report{.manifest = manifest_, .point = journal_->point, .warnings = {}};
  std::string trouble;
  try {
    enter(phase::kCommit);
  } catch (
      const Error& error) {  // the guest is put back all the same: QEMU says what is to be done
    trouble = error.what();
  }
  try {
    const Settled settled = co_await settle();
    report.overlay_kept = settled.overlay_kept;
    if (!settled.problems.empty())
      trouble = settled.problems.front();
    if (settled.overlay_kept)
      for (const std::string& done : settled.done)
        reporter_->say(done);
    else if (!settled.space.empty())
      reporter_->say(settled.space);
  } catch (const Error& error) {
    trouble = error.what();
  }
  if (!trouble.empty())
    fail(EIO,
         "restore point {} is complete, but the guest could not be put back as it was: {}; run "
         "'nbdelta recover', with --offline for each disk if the guest has ended",
         report.point, trouble);
  report.warnings = warnings_;
  co_return report;
}

asio::awaitable<std::vector<Exported>> Session::begin() {
  co_await run_to_export();
  for (Disk& disk : disks_)
    manifest_.disks.push_back(disk.entry);
  journal_->manifest = manifest_;
  std::exception_ptr failure;
  try {
    save_journal();
  } catch (const Error&) {
    failure = std::current_exception();
  }
  if (failure)
    co_await fail_session(failure);
  std::vector<Exported> exports;
  for (Disk& disk : disks_) {
    exports.push_back({.disk = disk.entry.name,
                       .type = disk.entry.type,
                       .size = disk.entry.size,
                       .uri = disk.uri});
  }
  co_return exports;
}

/// Nobody says twice, and differently, what became of a copy.
void Session::check_outcome(Outcome outcome) {
  const bool published = repository().has_manifest(journal_->point);
  if (outcome == Outcome::success && !published)
    refuse(EBUSY,
           "the session has no exports any more, or never had any, and nothing counts as copied: "
           "run 'nbdelta recover'");
  if (outcome == Outcome::failure && published)
    refuse(EBUSY,
           "the session has ended as a success: restore point {} counts, and the next session "
           "builds on it; run 'nbdelta end --success' or 'nbdelta recover' to finish, and make a "
           "full copy next (--full) where that copy is not to be had",
           journal_->point);
}

asio::awaitable<Settled> Session::end(Outcome outcome) {
  Repository points = repository();
  if (environment_->files().exists(options_->folder)) {
    lock_ = points.lock();
    journal_ = read_journal(environment_->files(), options_->folder);
  }
  if (!journal_ || !journal_->external)
    refuse(ENOENT, "{}: no session of external software is open", options_->folder);
  if (journal_->phase == phase::kExport && !journal_->manifest)
    refuse(EBUSY, "the session did not get to its exports: run 'nbdelta recover'");
  if (journal_->phase != phase::kExport)
    check_outcome(outcome);
  co_await thaw_window();
  co_await connect();
  co_await check_is_sessions_guest();
  if (journal_->phase == phase::kExport) {
    if (outcome == Outcome::success) {
      points.publish(journal_->point, *journal_->manifest);
      try {
        enter(phase::kCommit);
      } catch (const Error&) {  // as in backup(); settling says it where it fails in the end too
      }
    } else {
      points.withdraw(journal_->point);  // where an earlier 'end --success' came no further
      points.remove_unfinished();
    }
  }
  co_return co_await settle();
}

asio::awaitable<Settled> Session::recover() {
  Settled settled;
  if (!options_->folder.empty()) {
    if (!environment_->files().exists(options_->folder))
      refuse(ENOENT, "{}: there is no such repository", options_->folder);
    lock_ = repository().lock();
    journal_ = read_journal(environment_->files(), options_->folder);
  }
  std::string thawed = co_await thaw_leftover();
  co_await connect();
  co_await check_is_sessions_guest();
  if (!options_->folder.empty())
    repository().remove_unfinished();
  settled = co_await settle();
  if (!thawed.starts_with("thawed") && !thawed.empty())
    thawed = co_await thaw_leftover();  // a commit that held its writes back kept it from answering
  if (!thawed.empty()) {
    const bool done = thawed.starts_with("thawed");
    std::vector<std::string>& where = done ? settled.done : settled.problems;
    where.insert(where.begin(), thawed);
  }
  co_return settled;
}

}  // namespace nbdelta::client::backup
