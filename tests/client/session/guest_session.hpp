#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tests/client/session/session_test.hpp"
#include "tests/guest/check.hpp"
#include "tests/guest/guest.hpp"

namespace nbdelta::testing {

/// A restore point, and which operations of the guest it must and must not have.
struct Taken {
  std::string point;
  std::uint64_t done_before = 0;
  std::uint64_t not_after = 0;
  std::string consistency;
};

/// A real guest that writes, and the repository that it is backed up to. For one thread.
class GuestSession {
 public:
  /// Returns when the guest writes.
  explicit GuestSession(std::vector<GuestDisk> disks, const GuestOptions& options = {});

  Guest& guest() { return *guest_; }
  const std::string& folder() const { return folder_.path(); }
  const std::vector<GuestDisk>& disks() const { return disks_; }
  std::string repository() const { return folder_ / "repo"; }
  std::string vm_folder() const { return repository() + "/vm"; }

  /// `nbdelta NAME` with the guest's addresses and the repository.
  Command command(const std::string& name, const Command& more = {}) const;

  /// A backup that must succeed; its JSON.
  boost::json::value backup(const Command& more = {});
  /// The same, and what it has published equals plain copies (cp) of what it had frozen, made while
  /// the guest wrote to the overlays.
  boost::json::value backup_beside_copies(const Command& more = {});

  /// A backup begins that may come to anything: what is published from here to take_published() has
  /// nothing that began after it, and all that was done before.
  void expect_point();
  void take_published();

  /// What is wrong with each restore point: all are one instant of the guest with what it was told
  /// is written, and have clean file systems; the more so where they were frozen.
  std::map<std::string, std::vector<std::string>> problems_of_points();
  /// None.
  void check_points();
  /// After the guest was killed or has ended: what it would be started on has all that it was told
  /// is written.
  void check_images();

  /// What a guest is started on: the image, or the overlay that is named beside it.
  GuestDisk current(const GuestDisk& disk) const;
  /// QEMU has ended: starts it again with the same disks, but no guest in it.
  void start_without_guest();

  /// Files of ours beside the images.
  std::vector<std::string> leftovers() const;
  /// Of the session's journal.
  std::string phase() const { return journal_phase(vm_folder()); }

  /// What each backup took of its window itself, in ms.
  const std::vector<double>& own_times() const { return own_; }

 private:
  Command backup_command(const Command& more) const;
  boost::json::value took(const std::string& output, std::size_t log_before);
  GuestDisk copy_frozen(const GuestDisk& disk) const;

  TempFolder folder_;
  std::vector<GuestDisk> disks_;
  std::optional<Guest> guest_;
  std::vector<Taken> taken_;
  std::set<std::string> seen_;
  std::uint64_t done_before_ = 0;
  std::vector<double> own_;
};

}  // namespace nbdelta::testing
