#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "client/backup/inventory.hpp"
#include "client/backup/options.hpp"
#include "client/repository/manifest.hpp"

namespace nbdelta::client::backup {

/// Where it stands which blocks have changed since the last restore point.
enum class MapSource : std::uint8_t {
  none,      // a full: nowhere
  image,     // a persistent bitmap in the base
  qemu,      // a bitmap that QEMU has in memory
  absorbed,  // an earlier session's overlay is in place: it is committed first, into QEMU's bitmap
  layer,     // what the last session's overlay holds
};

/// So many images, each by a relative name, are a restore point at most; then comes a full. QEMU
/// joins such names to one path ("…/0002-incremental/../0001-full/vda.qcow2"), 20 bytes for each
/// point and two more where numbers have six digits, and a path has 4095 (PATH_MAX): with a disk's
/// name of 160 bytes more than 1 KiB is left for the repository's own.
inline constexpr std::size_t kLongestChain = 128;

/// A disk's file of the last restore point, as something to build on.
struct PreviousFile {
  std::size_t chain = 1;  // images that it is read through: itself, and those below it
  std::string trouble;    // why nothing can be built on it; empty: it can
};

struct DiskPlan {
  GuestDisk disk;
  MapSource map = MapSource::none;
  std::optional<std::string> reason;  // why a full, where the last restore point has this disk
  std::string bitmap;                 // the last restore point's, where one is used
  std::optional<repository::DiskEntry> previous;

  bool full() const { return map == MapSource::none; }
};

struct Plan {
  SessionId id;
  std::vector<DiskPlan> disks;
  std::vector<std::string> notes;  // disks that came, went or are left out

  std::string_view type() const;
};

/// What a plan is made from, besides the options.
struct Situation {
  Inventory inventory;
  std::optional<repository::Manifest> latest;
  std::uint32_t highest_number = 0;  // of the repository's folders
  std::string new_chain;             // where there is no restore point yet
  bool session_is_open = false;      // an earlier one, whose overlay is kept
  bool exports_abort_qemu = false;   // its NBD server must not be used
  std::vector<std::string> gaps;     // disks whose bitmap was removed for that
  /// Of the last restore point's disks; none of external software's.
  std::function<PreviousFile(const repository::DiskEntry&)> previous_file;
};

/// Whether the guest has a bitmap of this chain that is newer than the last restore point, though
/// no session of this repository is open: so another copy of the repository has gone on with it.
/// Then nothing of that chain is ours.
bool another_copy_has_gone_on(const Inventory& inventory, const repository::Manifest& latest);

/// Pure. Throws Refused for disks that are not there or cannot be taken.
Plan make_plan(const Situation& situation, const Options& options);

}  // namespace nbdelta::client::backup
