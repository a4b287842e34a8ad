#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qapi/command.hpp"

/// What QEMU says of its block graph (QEMU qapi/block-core.json; members that are not used are left
/// out).
namespace nbdelta::qapi {

/// "BlockDirtyInfo".
struct BitmapInfo {
  std::string name;               // empty: of a job that runs
  std::uint64_t count = 0;        // bytes that are dirty
  std::uint64_t granularity = 0;  // bytes
  bool recording = false;
  bool busy = false;  // in use by a job or an export
  bool persistent = false;
  std::optional<bool> inconsistent;
  template <class Visitor>
  void fields(Visitor& visit) {
    std::optional<std::string> given;
    if (!name.empty())
      given = name;
    visit("name", given);
    if (given.value_or("") != name)  // reading
      name = *given;
    visit("count", count);
    visit("granularity", granularity);
    visit("recording", recording);
    visit("busy", busy);
    visit("persistent", persistent);
    visit("inconsistent", inconsistent);
  }
};

/// "ImageInfo".
struct ImageInfo {
  struct Snapshot {  // "SnapshotInfo": a snapshot inside the image
    std::string name;
    template <class Visitor>
    void fields(Visitor& visit) {
      visit("name", name);
    }
  };

  std::string filename;
  std::string format;
  std::uint64_t virtual_size = 0;            // bytes
  std::optional<std::uint64_t> actual_size;  // bytes
  std::optional<std::string> backing_filename;
  std::optional<std::string> full_backing_filename;
  std::optional<std::string> backing_format;
  std::optional<json::value> backing_image;  // an ImageInfo: of the backing file, where it is open
  std::optional<json::value> format_specific;  // "ImageInfoSpecific"
  std::optional<std::vector<Snapshot>> snapshots;

  std::vector<std::string> snapshot_names() const {
    std::vector<std::string> names;
    for (const Snapshot& snapshot : snapshots.value_or(std::vector<Snapshot>()))
      names.push_back(snapshot.name);
    return names;
  }
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("filename", filename);
    visit("format", format);
    visit("virtual-size", virtual_size);
    visit("actual-size", actual_size);
    visit("backing-filename", backing_filename);
    visit("full-backing-filename", full_backing_filename);
    visit("backing-filename-format", backing_format);
    visit("backing-image", backing_image);
    visit("format-specific", format_specific);
    visit("snapshots", snapshots);
  }
};

/// "BlockDeviceInfo": one node of the graph.
struct NodeInfo {
  struct Cache {
    bool direct = false;
    template <class Visitor>
    void fields(Visitor& visit) {
      visit("direct", direct);
    }
  };

  std::optional<std::string> node_name;
  std::string driver;
  std::string file;
  bool read_only = false;
  std::uint64_t backing_depth = 0;
  std::uint64_t write_threshold = 0;  // bytes; 0: none
  ImageInfo image;
  std::optional<Cache> cache;
  std::optional<std::string> detect_zeroes;
  std::optional<std::vector<BitmapInfo>> bitmaps;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node-name", node_name);
    visit("drv", driver);
    visit("file", file);
    visit("ro", read_only);
    visit("backing_file_depth", backing_depth);
    visit("write_threshold", write_threshold);
    visit("image", image);
    visit("cache", cache);
    visit("detect_zeroes", detect_zeroes);
    visit("dirty-bitmaps", bitmaps);
  }
};

/// "BlockInfo": what a guest sees as a disk.
struct DeviceInfo {
  std::string device;  // empty for one that was given nodes by name
  std::optional<std::string> qdev;
  bool removable = false;
  std::optional<std::string> io_status;  // "ok", "failed", "nospace", since the last `cont`
  std::optional<NodeInfo> inserted;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("device", device);
    visit("qdev", qdev);
    visit("removable", removable);
    visit("io-status", io_status);
    visit("inserted", inserted);
  }
};

struct QueryBlock {
  static constexpr std::string_view kName = "query-block";
  using Result = std::vector<DeviceInfo>;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

struct QueryNamedBlockNodes {
  static constexpr std::string_view kName = "query-named-block-nodes";
  using Result = std::vector<NodeInfo>;
  std::optional<bool> flat;  // without the chain below each
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("flat", flat);
  }
};

}  // namespace nbdelta::qapi
