#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "image/extent_map.hpp"
#include "image/view.hpp"

namespace nbdelta::image {

/// Where things are in a packed export (docs/extents.md, "Packed exports"), bytes from its start.
struct PackedLayout {
  static constexpr std::uint64_t kHeader = 4096;  // takes so much, though it says little
  static constexpr std::uint64_t kMap = kHeader;

  std::uint64_t disk_size = 0;
  std::uint64_t map_size = 0;   // a multiple of ExtentMap::kBlockBytes
  std::uint64_t data_size = 0;  // of all extents in state data
  std::uint64_t digest = 0;     // of the map: where the data is depends on all of it

  std::uint64_t data() const { return kMap + map_size; }
  std::uint64_t size() const { return data() + data_size; }
  bool operator==(const PackedLayout&) const = default;

  /// What a server sent: at least kHeader bytes, of an export of `export_size` bytes. Throws Error
  /// (EPROTO) where it is no packed export or contradicts itself.
  static PackedLayout parse(std::span<const std::byte> header, std::uint64_t export_size);
};

/// XXH3, 64 bits, of the encoded map.
std::uint64_t digest_of(const ExtentMap& map);

/// A view as one run of bytes: what it says of its extents, then the bytes of those in state data,
/// one after the other. So a client needs few requests, whatever the extents' number and length.
/// Constant; reads are safe from several threads.
class Packed {
 public:
  static constexpr std::string_view kPrefix = "packed:";  // of an export's name
  static constexpr std::string_view kDescription = "packed: ";

  /// Reads the view's map as read_map() does, and keeps it. `view` must outlive the object.
  Packed(const View& view, const std::function<void()>& check);

  const ExtentMap& map() const { return map_; }
  const PackedLayout& layout() const { return layout_; }

  /// Requires offset + out.size() <= layout().size(). Throws Error.
  void read(std::span<std::byte> out, std::uint64_t offset) const;

 private:
  void read_header(std::span<std::byte> out, std::uint64_t offset) const;
  void read_data(std::span<std::byte> out, std::uint64_t offset) const;

  /// What somebody who reads on from where another read keeps; any will do.
  class Walks {
   public:
    Walks(const Disk& disk, const KnownRuns& known) : disk_(disk), known_(known) {}
    Disk::Walk take();
    void give_back(Disk::Walk walk);

   private:
    const Disk& disk_;
    const KnownRuns& known_;
    std::mutex mutex_;  // of unused_
    std::vector<Disk::Walk> unused_;
  };

  const Disk* disk_;
  KnownRuns known_;
  mutable Walks walks_;
  ExtentMap map_;
  PackedLayout layout_;
};

}  // namespace nbdelta::image
