#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nbdelta::client::backup {

/// Everything that a session makes in QEMU and beside the images is named after it, so that it can
/// be found again by the name alone: `nbdelta-CHAIN-NUMBER…`. CHAIN is that of the restore points
/// (eight hex digits), NUMBER the restore point's that the session makes.
struct SessionId {
  std::string chain;
  std::uint32_t number = 0;

  bool operator==(const SessionId&) const = default;
};

inline constexpr std::string_view kPrefix = "nbdelta-";

/// The bitmap that holds what has changed since the session's switch.
std::string bitmap_name(const SessionId& id);
/// The overlay of one disk. QEMU limits node names to 31 bytes.
std::string overlay_node_name(const SessionId& id, std::size_t disk);
/// The overlay's protocol node, for its write threshold.
std::string file_node_name(const SessionId& id, std::size_t disk);
std::string overlay_file_name(const SessionId& id, std::string_view disk_name);
/// The commit of the overlay that the guest writes to.
std::string active_job_name(const SessionId& id, std::size_t index);
/// The commit of an overlay below that.
std::string lower_job_name(const SessionId& id, std::size_t index);
/// The node that says that it was a commit that has stopped the guest, for a moment.
std::string stop_node_name(const SessionId& id);

/// Which session a bitmap, node, job or file is of; nothing where the name is not one of ours.
std::optional<SessionId> session_of(std::string_view name);

/// A new chain's.
std::string chain_name(std::uint64_t random);

/// What a guest's configuration calls a disk, as a file name: letters, digits, `.`, `_` and `-`.
std::string file_safe(std::string_view name);

/// The last component of a path.
std::string_view base_name(std::string_view path);
/// What is before it: "." where there is nothing, "/" for a file of the root.
std::string folder_of(std::string_view path);

}  // namespace nbdelta::client::backup
