#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <variant>

#include "image/dirty_bitmap.hpp"
#include "image/disk.hpp"
#include "image/extent.hpp"
#include "image/extent_map.hpp"
#include "image/known_runs.hpp"

namespace nbdelta::image {

/// How the description of every changed view's export begins. A client that sees this may take
/// HOLE without ZERO as "unchanged"; from any other server it only means "unallocated".
inline constexpr std::string_view kChangedViewDescription = "changed view: ";
/// And those of its whole disks.
inline constexpr std::string_view kWholeDiskDescription = "the disk; ";

/// What an export says of its extents; docs/extents.md defines each. Reads are the disk's own.
/// Constant; every function is safe to call from several threads.
class View {
 public:
  /// Real allocation.
  static View image(const Disk& disk) { return {disk, Image{}}; }
  /// Changed = allocated in the image file itself.
  static View layer(const Disk& disk) { return {disk, TopLayer{}}; }
  /// Changed = set in the bitmap, which must live as long as the view.
  static View dirty(const Disk& disk, const DirtyBitmap& bitmap) { return {disk, &bitmap}; }
  /// Changed = anything but `unchanged` and past the map's end, which counts as changed.
  static View dirty(const Disk& disk, const ExtentMap& map) { return {disk, &map}; }

  const Disk& disk() const { return *disk_; }
  bool is_changed_view() const { return !std::holds_alternative<Image>(source_); }

  /// Requires offset + length <= disk().size(). `found` gets those changed extents of a bitmap or
  /// map that are one run of data of the image itself, and for which a table had to be read.
  void for_each_extent(std::uint64_t offset, std::uint64_t length, const ExtentSink& sink,
                       KnownRuns* found = nullptr) const;

 private:
  struct Image {};
  struct TopLayer {};
  using Source = std::variant<Image, TopLayer, const DirtyBitmap*, const ExtentMap*>;

  View(const Disk& disk, Source source) : disk_(&disk), source_(source) {}

  const Disk* disk_;
  Source source_;
};

/// All that the view says, read by several threads at once. `check` is called now and then, by any
/// of them; what it throws ends the reading. `found`: as for_each_extent(), at most 64 times
/// KnownRuns::kMost; for those who read the disk then. Throws Error.
ExtentMap read_map(const View& view, const std::function<void()>& check,
                   KnownRuns* found = nullptr);

}  // namespace nbdelta::image
