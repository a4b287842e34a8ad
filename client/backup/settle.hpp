#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "client/backup/inventory.hpp"
#include "client/backup/journal.hpp"
#include "client/backup/options.hpp"
#include "client/qmp/client.hpp"
#include "client/repository/repository.hpp"

namespace nbdelta::client::backup {

/// What putting things right came to.
struct Settled {
  std::vector<std::string> done;      // in the order it was done
  std::vector<std::string> problems;  // what is left, and what to do about it
  std::vector<std::string> gaps;      // disks whose bitmap had a gap: the next backup is a full
  bool overlay_kept = false;          // a commit did not end: the next backup works with that
  std::string space;                  // what is to be said of a guest that had none left
};

/// Brings a guest to the state that its last restore point asks for, from whatever state it is in:
/// after a backup that went well, after one that failed, and after a crash at any point; so there
/// is one way to end a session, and it can be repeated.
///
/// What is aimed at, for each disk of the chain:
///   by bitmap   no overlay; one bitmap, the last restore point's, recording, with all that has
///               changed since (what a failed session's bitmap holds is merged into it);
///   by overlay  one overlay, the last restore point's, and those of sessions that failed after it.
/// What is done is decided by what QEMU has. The journal says which files are ours.
class Settler {
 public:
  /// `repository` is null where it is not known: then nothing is taken for durable, and no bitmap
  /// is removed.
  Settler(Environment& environment, qmp::Client& qmp, const Options& options,
          repository::Repository* repository)
      : environment_(&environment),
        qmp_(&qmp),
        options_(&options),
        paths_(&options.paths),
        repository_(repository) {}

  /// `journal` is the session's, and is kept up to date while there is one. Errors of single disks
  /// become problems; throws ChannelLost (QEMU is gone), and Error for what concerns all of them.
  asio::awaitable<Settled> settle(std::optional<Journal>& journal);

 private:
  /// An overlay that no disk runs on.
  struct Loose {
    std::string base;          // local, as the other paths
    std::string disk;          // its name; empty: not known
    bool added_by_us = false;  // to this QEMU, which has it still
  };

  void end_servers(const Inventory& inventory, const std::optional<Journal>& journal);
  asio::awaitable<void> end_exports(std::optional<Journal>& journal);
  asio::awaitable<void> settle_disk(GuestDisk disk, std::optional<Journal>& journal);
  asio::awaitable<bool> end_overlays(GuestDisk& disk, std::optional<Journal>& journal);
  asio::awaitable<void> name_backing_files(GuestDisk& disk);
  void mark_what_was_below(const GuestDisk& disk);
  void enter_commit(std::optional<Journal>& journal, const std::string& lowest);
  asio::awaitable<void> commit_lower(GuestDisk& disk, std::size_t first,
                                     std::optional<Journal>& journal);
  asio::awaitable<void> commit_all(GuestDisk& disk, std::optional<Journal>& journal);
  asio::awaitable<void> settle_bitmaps(GuestDisk disk);
  asio::awaitable<void> put_back(GuestDisk disk, qapi::BitmapInfo bitmap,
                                 std::vector<std::string> later);
  asio::awaitable<void> merge_all(GuestDisk disk, std::vector<qapi::BitmapInfo> bitmaps);
  asio::awaitable<void> ensure_bitmap(GuestDisk disk, SessionId id);
  bool is_expendable(const std::string& local, const std::optional<Journal>& journal);
  bool was_committed(const std::string& local, const Loose& overlay,
                     const Inventory& inventory) const;
  asio::awaitable<std::map<std::string, Loose>> release_nodes(Inventory inventory);
  asio::awaitable<void> remove_loose(std::optional<Journal>& journal);
  asio::awaitable<void> write_current_files(const std::optional<Journal>& journal);
  asio::awaitable<void> look_after_space(bool has_room);
  asio::awaitable<bool> delete_node(std::string node);
  void drop_overlay(const std::string& local, const std::string& base_local);
  void save(const Journal& journal);
  bool is_durable(const SessionId& id) const;
  bool ours(const SessionId& id) const;
  std::string_view tracking_of(const GuestDisk& disk, const std::optional<Journal>& journal) const;

  Environment* environment_;
  qmp::Client* qmp_;
  const Options* options_;
  const Paths* paths_;
  repository::Repository* repository_;
  std::optional<repository::Manifest> latest_;
  std::string chain_;  // whose things are ours, where there is a repository; may be empty
  Settled settled_;
  bool made_room_ = false;  // overlays have gone
};

}  // namespace nbdelta::client::backup
