#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/arithmetic.hpp"
#include "client/backup/plan.hpp"

// A guest and a repository, for tests of make_plan(), which change what they are about.

namespace nbdelta::client::backup {

inline constexpr const char* kChain = "0123abcd";

inline qapi::BitmapInfo bitmap(const std::string& name) {
  return {.name = name,
          .count = 65536,
          .granularity = 65536,
          .recording = true,
          .busy = false,
          .persistent = true,
          .inconsistent = std::nullopt};
}

inline GuestDisk disk(const std::string& name) {
  GuestDisk disk;
  disk.name = name;
  disk.device = "drive-" + name;
  disk.qdev = "qdev-" + name;
  disk.top = "top-" + name;
  disk.base_node = "top-" + name;
  disk.base_path = disk.base_local = "/vm/" + name + ".qcow2";
  disk.size = disk.base_size = kGiB;
  disk.can_keep_bitmaps = true;
  return disk;
}

inline StackedOverlay overlay(std::uint32_t number, const std::string& chain = kChain) {
  const SessionId session{chain, number};
  const std::string path = "/vm/" + overlay_file_name(session, "vda");
  return {overlay_node_name(session, 0), path, path, session};
}

inline repository::DiskEntry entry(const std::string& name) {
  repository::DiskEntry entry;
  entry.origin.path = "/vm/" + name + ".qcow2";
  entry.name = name;
  entry.size = kGiB;
  entry.type = repository::kFull;
  entry.file = name + ".qcow2";
  entry.tracking = repository::kByBitmap;
  return entry;
}

/// A guest with one disk, and a restore point 2 that an incremental can be made to.
inline Situation usual() {
  Situation situation;
  situation.inventory.disks.push_back(disk("vda"));
  situation.inventory.disks[0].bitmaps = {bitmap("nbdelta-0123abcd-0002")};
  situation.latest.emplace();
  situation.latest->chain = kChain;
  situation.latest->number = 2;
  situation.latest->disks = {entry("vda")};
  situation.highest_number = 2;
  situation.new_chain = "ffff0000";
  situation.previous_file = [](const repository::DiskEntry&) { return PreviousFile(); };
  return situation;
}

}  // namespace nbdelta::client::backup
