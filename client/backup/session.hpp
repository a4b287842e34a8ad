#pragma once

#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/backup/journal.hpp"
#include "client/backup/options.hpp"
#include "client/backup/plan.hpp"
#include "client/backup/quiesce.hpp"
#include "client/backup/settle.hpp"
#include "client/qmp/client.hpp"
#include "client/repository/repository.hpp"
#include "qapi/snapshot_commands.hpp"

namespace nbdelta::client::backup {

/// What a backup came to.
struct Report {
  repository::Manifest manifest;
  std::string point;  // the restore point's folder, relative to REPO/VM
  std::vector<std::string> warnings;
  bool overlay_kept = false;
};

/// An NBD export for external software.
struct Exported {
  std::string disk;
  std::string type;
  std::uint64_t size = 0;  // bytes
  std::string uri;
};

/// What to tell about a disk before anything is done.
struct Forecast {
  Plan plan;
  std::vector<std::string> notes;
};

/// One session with one guest: docs/architecture.md shows its states. For one coroutine; each
/// object does one thing. What it throws is said for people; the guest is thawed then, and what
/// could be put right has been.
class Session {
 public:
  /// What is passed must outlive the session.
  Session(Environment& environment, const Options& options, const Reporter& reporter);

  /// What backup() would do. Touches nothing.
  asio::awaitable<Forecast> forecast();

  asio::awaitable<Report> backup();

  /// Up to the exports; the session stays open. Throws Refused where one is open already.
  asio::awaitable<std::vector<Exported>> begin();

  /// Ends what begin() has begun: the restore point counts only where `success`.
  enum class Outcome : std::uint8_t { success, failure };
  asio::awaitable<Settled> end(Outcome outcome);

  /// Puts right whatever an earlier session has left. Without options_.folder no restore point is
  /// known. Can be repeated.
  asio::awaitable<Settled> recover();

  /// Of backup() and begin().
  const repository::Manifest& manifest() const { return manifest_; }
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  struct Disk {
    DiskPlan plan;
    std::size_t index = 0;  // in names
    repository::DiskEntry entry;
    std::string map_bitmap;  // that QEMU exports
    std::unique_ptr<Server> server;
    std::string uri;
  };

  asio::awaitable<void> open_channel();
  asio::awaitable<void> connect();
  asio::awaitable<void> check_commands(const qapi::Greeting& greeting);
  asio::awaitable<void> check_not_migrating();
  asio::awaitable<void> check_running();
  asio::awaitable<void> check_is_sessions_guest();
  bool may_be_frozen() const;
  asio::awaitable<std::string> thaw_leftover();
  asio::awaitable<void> thaw_window();
  void check_outcome(Outcome outcome);
  void check_not_open() const;
  asio::awaitable<void> settle_leftover();
  asio::awaitable<bool> overlays_are_in_place();
  asio::awaitable<Plan> make_plan_now();

  asio::awaitable<void> open_session();
  void check_ports() const;
  void check_image(const GuestDisk& disk) const;
  asio::awaitable<void> prepare();
  asio::awaitable<void> remove_inconsistent_bitmaps();
  asio::awaitable<void> check_sizes();
  asio::awaitable<void> add_overlay(Disk& disk, JournalDisk& entry);
  JournalDisk journal_disk(const Disk& disk) const;
  asio::awaitable<void> window();
  std::vector<qapi::TransactionAction> switch_actions() const;
  asio::awaitable<void> absorb(Disk& disk);
  asio::awaitable<void> start_nbd_server();
  asio::awaitable<void> export_all();
  /// Where what is behind its base may be read from: folders as QEMU writes them, which headers
  /// may do too, and without symbolic links.
  std::vector<std::string> folders_behind(const GuestDisk& disk) const;
  asio::awaitable<void> start_server(Disk& disk);
  asio::awaitable<std::string> export_map(Disk& disk);
  asio::awaitable<void> wait_for_end_of_export(std::string id);
  asio::awaitable<void> drop_map(Disk& disk, std::string id);
  asio::awaitable<void> pull_all();
  asio::awaitable<void> pull_disk(Disk& disk);
  asio::awaitable<void> receive_events();
  void take_note(const qapi::Event& event);
  void warn_of_threshold(const qapi::Event& event);
  asio::awaitable<void> run_to_export();
  asio::awaitable<std::exception_ptr> explain(std::exception_ptr failure);
  asio::awaitable<void> fail_session(std::exception_ptr failure);
  asio::awaitable<Settled> settle();
  asio::awaitable<std::string> settle_after_failure();
  asio::awaitable<void> reconnect();
  void fill_manifest();
  void enter(std::string_view phase);
  void save_journal();
  void check_stop() const;
  repository::Repository repository();

  Environment* environment_;
  const Options* options_;
  const Reporter* reporter_;
  std::unique_ptr<qmp::Client> qmp_;
  std::unique_ptr<Lock> lock_;
  std::optional<Journal> journal_;
  std::string open_chain_;         // of an earlier session, whose overlay is kept; empty: none is
  std::vector<std::string> gaps_;  // see Situation
  Plan plan_;
  std::string previous_point_;  // the folder of the latest restore point
  std::vector<Disk> disks_;
  Quiescence quiescence_;
  repository::Manifest manifest_;
  std::vector<std::string> warnings_;
};

}  // namespace nbdelta::client::backup
