#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "client/backup/environment.hpp"
#include "client/backup/names.hpp"
#include "client/backup/paths.hpp"
#include "client/qmp/client.hpp"
#include "image/disk.hpp"
#include "qapi/block_nodes.hpp"

namespace nbdelta::client::backup {

/// One of our overlays that a guest's disk runs on.
struct StackedOverlay {
  std::string node_name;
  std::string path;   // QEMU's
  std::string local;  // without symbolic links
  SessionId session;
  std::vector<std::string> snapshots = {};  // names of those that the image holds
};

/// A disk of the guest: an image, and what of ours lies over it.
///
/// Invariant: `overlays` are of one chain or more, topmost first, with nobody else's between.
struct GuestDisk {
  std::size_t index = 0;   // among the disks
  std::string name;        // in the repository: device, qdev id, or node name
  std::string device;      // may be empty
  std::string qdev;        // may be empty
  std::string top;         // node name of what the guest writes to
  std::uint64_t size = 0;  // bytes
  std::vector<StackedOverlay> overlays;
  std::uint64_t base_size = 0;  // bytes; less where the disk was made larger on an overlay
  std::string base_node;
  std::string base_file_node;  // its protocol node
  std::string detect_zeroes = "off";
  std::string base_path;   // QEMU's
  std::string base_local;  // without symbolic links
  image::Format base_format = image::Format::qcow2;
  std::string backing_node;               // the next below the base; empty: none
  std::vector<std::string> behind_base;   // QEMU's paths: its backing chain, external data files
  bool can_keep_bitmaps = false;          // qcow2, version 3
  bool direct = false;                    // cache.direct
  std::vector<qapi::BitmapInfo> bitmaps;  // of the base

  bool is_called(const std::string& what) const {
    return what == name || what == device || what == qdev || what == top || what == base_node;
  }
};

/// A device that is not backed up.
struct LeftOut {
  std::string name;
  std::string reason;
  bool by_nature = false;  // empty, removable or read-only: nobody expects it
};

struct Inventory {
  std::vector<GuestDisk> disks;
  std::vector<LeftOut> left_out;
};

/// The file of an image, as QEMU knows it. QEMU calls a qcow2 image by all its options ("json:{…}")
/// where its header names another backing file than it has, as it is for a moment after a commit.
std::string path_of(const qapi::ImageInfo& image);

/// What may have kept an overlay from being committed, to be said after that: its disk was made
/// larger than the base, and QEMU makes no block device larger. Empty where it is not so.
std::string size_trouble(const GuestDisk& disk);

/// Whether QEMU has made the node's name up.
bool is_automatic(std::string_view node_name);

/// How QEMU's paths are understood.
struct PathReader {
  /// A path of this machine without symbolic links.
  std::function<std::string(const std::string& path)> to_local;
  /// What the header of such a path's image names as its backing file; see Files::backing_of().
  std::function<std::optional<std::string>(const std::string& local)> backing_of;
};

/// Asks nobody but `paths`.
Inventory take_inventory(const std::vector<qapi::DeviceInfo>& devices,
                         const std::vector<qapi::NodeInfo>& nodes, const PathReader& paths);

/// What QEMU has now. Throws what Client::call() does.
asio::awaitable<Inventory> query_inventory(qmp::Client& qmp, Environment& environment,
                                           const Paths& paths);

}  // namespace nbdelta::client::backup
