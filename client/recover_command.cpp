#include "client/recover_command.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <memory>

#include "client/backup/offline.hpp"
#include "client/backup/overlay_files.hpp"
#include "client/backup/real/environment.hpp"
#include "client/backup/session.hpp"
#include "client/console.hpp"
#include "client/exit_status.hpp"
#include "client/guest_options.hpp"
#include "client/json_text.hpp"
#include "client/run_session.hpp"
#include "client/target/open_target.hpp"

namespace nbdelta::client {
namespace {

struct RecoverOptions {
  GuestOptions guest;
  std::vector<std::string> offline;
};

void append(backup::Settled& to, backup::Settled&& from) {
  std::move(from.done.begin(), from.done.end(), std::back_inserter(to.done));
  std::move(from.problems.begin(), from.problems.end(), std::back_inserter(to.problems));
}

/// What is left of the session when none of its overlays is: bitmaps that QEMU has to merge, if
/// any.
void close_session(backup::Files& files, const std::string& folder, backup::Journal& journal,
                   backup::Settled& settled) {
  for (const backup::JournalDisk& disk : journal.disks) {
    if (journal.phase == backup::phase::kPrepare && files.exists(disk.overlay_local) &&
        backup::is_half_made(files, disk.overlay_local))
      backup::remove_overlay(files, disk.overlay_local, disk.base_local);
    if (files.exists(disk.overlay_local)) {
      settled.problems.push_back(
          fmt::format("{}: its overlay {} is still there: name its image ({}) after --offline too",
                      disk.name, disk.overlay_local, disk.base_local));
      return;
    }
  }
  files.remove(backup::map_socket(journal));
  backup::remove_export_sockets(files, journal);
  if (journal.tracking == repository::kByBitmap && journal.phase != backup::phase::kPrepare) {
    if (journal.phase == backup::phase::kOffline)
      return;
    journal.phase = backup::phase::kOffline;
    journal.external = false;  // what its exports showed cannot be told any more
    journal.manifest.reset();
    files.write_text(backup::journal_path(folder), to_json_text(journal));
    settled.done.push_back(
        fmt::format("ended the session {} of {}; the next backup, or 'nbdelta "
                    "recover --qmp', puts its bitmaps right",
                    journal.number, folder));
    return;
  }
  files.remove(backup::journal_path(folder));
  settled.done.push_back(fmt::format("closed the session {} of {}", journal.number, folder));
}

backup::Settled recover_images(const RecoverOptions& options) {
  const backup::Options session = options.guest.interpret();
  const std::string& folder = session.folder;
  asio::io_context loop;
  const auto environment = backup::real_environment(loop, {}, {});
  backup::Files& files = environment->files();
  std::unique_ptr<backup::Lock> lock;
  std::optional<backup::Journal> journal;
  repository::Repository points(files, folder);
  if (!folder.empty()) {
    if (!files.exists(folder))
      backup::refuse(ENOENT, "{}: there is no such repository", folder);
    lock = points.lock();
    journal = backup::read_journal(files, folder);
  }
  backup::Settled settled;
  for (const std::string& image : options.offline) {
    try {
      files.check_readable(image);  // nothing lies over a name that is mistyped
      append(settled, backup::recover_offline(*environment, image, journal, session.overlay_dir));
    } catch (const Error& error) {
      if (options.offline.size() == 1)
        throw;
      settled.problems.emplace_back(error.what());
    }
  }
  if (!folder.empty())
    points.remove_unfinished();
  if (journal && settled.problems.empty())
    close_session(files, folder, *journal, settled);
  return settled;
}

backup::Settled recover_images_or_say(const RecoverOptions& options) {
  try {
    return recover_images(options);
  } catch (const target::UsageError&) {
    throw;
  } catch (const std::exception& error) {
    print_failure(options.guest.json, result_of(error), error.what());
    throw;
  }
}

int run_recover_command(const RecoverOptions& options) {
  if (options.offline.empty() == options.guest.qmp.empty())
    throw target::UsageError(EINVAL,
                             "say --qmp ADDRESS (the guest runs) or --offline DISK (it "
                             "does not)");
  if (!options.offline.empty())
    return print_settled(recover_images_or_say(options), options.guest);
  const backup::Options session_options = options.guest.interpret();
  ConsoleReporter console(options.guest.quiet);
  int status = kDone;
  const int interrupted = run_session(
      options.guest,
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        backup::Session session(environment, session_options, console.reporter());
        const backup::Settled settled = co_await session.recover();
        status = print_settled(settled, options.guest);
      },
      [&] { console.tick(); });
  return interrupted != 0 ? interrupted : status;
}

}  // namespace

std::function<int()> add_recover_command(CLI::App& app) {
  const auto options = std::make_shared<RecoverOptions>();
  CLI::App* command = app.add_subcommand("recover", "Put right what a session that died has left");
  options->guest.add_to(*command, GuestOptions::Needs::guest);
  command
      ->add_option("--offline", options->offline,
                   "the image of a guest that does not run; may be given more than once")
      ->type_name("DISK");
  command
      ->add_option("--overlay-dir", options->guest.overlay_dir,
                   "where overlays of block devices are, for --offline")
      ->type_name("FOLDER");
  command->footer(R"(Can be run at any time, and again. Examples:
  nbdelta recover --qmp /run/vm1.qmp --agent /run/vm1.qga --vm vm1 --to /backup
  nbdelta recover --offline /images/vm1.qcow2 --vm vm1 --to /backup

Exit status: 0 everything is right; 1 something is left, and is said.)");
  return [options] { return run_recover_command(*options); };
}

}  // namespace nbdelta::client
