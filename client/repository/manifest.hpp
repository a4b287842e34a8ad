#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "qapi/fields.hpp"

namespace nbdelta::client::repository {

/// How changes are tracked until the next restore point: docs/operations.md.
inline constexpr std::string_view kByBitmap = "bitmap";
inline constexpr std::string_view kByOverlay = "overlay";

inline constexpr std::string_view kFull = "full";
inline constexpr std::string_view kIncremental = "incremental";

/// What the guest was told, and when: microseconds of the machine's monotonic clock.
struct Window {
  std::optional<std::int64_t> freeze_sent_us;
  std::optional<std::int64_t> freeze_answered_us;
  std::int64_t switch_sent_us = 0;
  std::int64_t switch_answered_us = 0;
  std::optional<std::int64_t> thaw_sent_us;
  std::optional<std::int64_t> thaw_answered_us;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("freeze-sent-us", freeze_sent_us);
    visit("freeze-answered-us", freeze_answered_us);
    visit("switch-sent-us", switch_sent_us);
    visit("switch-answered-us", switch_answered_us);
    visit("thaw-sent-us", thaw_sent_us);
    visit("thaw-answered-us", thaw_answered_us);
  }

  /// From the first command's departure to the last one's answer.
  std::int64_t length_us() const {
    return thaw_answered_us.value_or(switch_answered_us) - freeze_sent_us.value_or(switch_sent_us);
  }
  std::int64_t agent_us() const {
    const std::int64_t freeze = freeze_answered_us.value_or(0) - freeze_sent_us.value_or(0);
    return thaw_answered_us ? freeze + *thaw_answered_us - thaw_sent_us.value_or(0) : freeze;
  }
  std::int64_t switch_us() const { return switch_answered_us - switch_sent_us; }
  /// What was waited for neither the agent nor QEMU.
  std::int64_t own_us() const { return length_us() - agent_us() - switch_us(); }
};

/// The image in QEMU.
struct Origin {
  std::string path;
  std::string format;
  std::string node_name;
  std::string device;
  std::string qdev;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("path", path);
    visit("format", format);
    visit("node-name", node_name);
    visit("device", device);
    visit("qdev", qdev);
  }
};

struct DiskEntry {
  std::string name;
  std::uint64_t size = 0;  // bytes
  std::string type;
  std::optional<std::string> reason;  // why it is a full, where an incremental was expected
  std::optional<std::string> file;    // in the point's folder; absent: external software has it
  std::optional<std::string> base;    // the file below, relative to the point's folder
  std::string tracking;
  std::optional<std::uint64_t> written;  // bytes of data
  std::optional<std::uint64_t> zeroed;
  std::optional<std::uint64_t> extents;
  Origin origin;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("name", name);
    visit("size", size);
    visit("type", type);
    visit("reason", reason);
    visit("file", file);
    visit("base", base);
    visit("tracking", tracking);
    visit("written", written);
    visit("zeroed", zeroed);
    visit("extents", extents);
    visit("origin", origin);
  }
};

/// One restore point: docs/manifest.schema.json.
struct Manifest {
  static constexpr std::int64_t kVersion = 1;

  std::int64_t manifest_version = kVersion;
  std::string vm;
  std::string chain;         // eight hex digits
  std::uint32_t number = 0;  // counts up within the chain
  std::string type;
  bool external = false;  // made by `nbdelta begin`: the data is elsewhere
  std::string created;    // RFC 3339, UTC
  std::string consistency;
  std::int64_t frozen_file_systems = 0;
  std::optional<std::vector<std::string>> mountpoints;  // frozen alone
  std::optional<std::string> freeze_failure;
  std::optional<std::string> presync;
  std::optional<std::string> agent_version;
  std::string qemu_version;
  std::string nbdelta_version;
  Window window;
  std::vector<DiskEntry> disks;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("manifest-version", manifest_version);
    visit("vm", vm);
    visit("chain", chain);
    visit("number", number);
    visit("type", type);
    visit("external", external);
    visit("created", created);
    visit("consistency", consistency);
    visit("frozen-file-systems", frozen_file_systems);
    visit("mountpoints", mountpoints);
    visit("freeze-failure", freeze_failure);
    visit("presync", presync);
    visit("agent-version", agent_version);
    visit("qemu-version", qemu_version);
    visit("nbdelta-version", nbdelta_version);
    visit("window", window);
    visit("disks", disks);
  }

  const DiskEntry* find(const std::string& disk) const {
    for (const DiskEntry& entry : disks)
      if (entry.name == disk)
        return &entry;
    return nullptr;
  }
};

}  // namespace nbdelta::client::repository
