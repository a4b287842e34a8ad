#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/file.hpp"
#include "image/metadata.hpp"

namespace nbdelta::image {

/// What one image file says of a range of the virtual disk.
enum class Allocation : std::uint8_t {
  unallocated,  // this file says nothing: the backing file, or zeros where there is none
  zero,         // this file says: reads zero
  data,         // plain bytes at `host_offset` of the data file
  compressed,   // a compressed cluster
};

/// An offset in a file that holds image data, as opposed to one of the virtual disk.
enum class HostOffset : std::uint64_t {};

constexpr std::uint64_t raw(HostOffset offset) {
  return static_cast<std::uint64_t>(offset);
}

/// The longest answer that is cheap to give; the next run may have the same allocation.
struct Run {
  Allocation allocation = Allocation::unallocated;
  std::uint64_t length = 0;
  HostOffset host_offset{};  // data: where the run's first byte is, the whole run contiguous;
                             // compressed: what the layer needs to find it again
};

class KnownRuns;

/// What somebody who goes through an image from its start to its end saw of its tables last.
struct LayerWalk {
  const KnownRuns* known = nullptr;  // of the layer, where somebody has been through it before
  std::size_t next_known = 0;
  MetadataWindow outer;  // of qcow2's L1 table
  MetadataWindow inner;  // of its L2 tables: of the one at
  std::uint64_t l2_table = 0;
  std::uint64_t begin = 0;  // these entries, for bytes [begin, end) of the disk
  std::uint64_t end = 0;
  MetadataReader::Entries entries;
};

/// One image file of a backing chain. Constant after it was opened; every function is safe to call
/// from several threads. A damaged image is an Error with file, place and value.
class Layer {
 public:
  Layer() = default;
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  virtual ~Layer() = default;

  /// For messages.
  virtual const std::string& name() const = 0;

  /// Virtual size, bytes.
  virtual std::uint64_t size() const = 0;

  /// The run at `offset`, 1 to `limit` bytes long. Requires limit > 0, offset + limit <= size().
  virtual Run run_at(std::uint64_t offset, std::uint64_t limit) const = 0;

  /// The same for a walk.
  virtual Run run_at(std::uint64_t offset, std::uint64_t limit, LayerWalk& /*walk*/) const {
    return run_at(offset, limit);
  }

  /// As run_at, for a caller that is about to read: where reading a hole costs less than finding
  /// its end, the hole may count as data.
  virtual Run run_to_read_at(std::uint64_t offset, std::uint64_t limit) const {
    return run_at(offset, limit);
  }

  /// The same for a walk.
  virtual Run run_to_read_at(std::uint64_t offset, std::uint64_t limit, LayerWalk& walk) const {
    return run_at(offset, limit, walk);
  }

  /// Reads bytes of the virtual disk from one run that run_at returned for `offset`
  /// (`out.size() <= run.length`), of allocation data or compressed.
  virtual void read(std::span<std::byte> out, std::uint64_t offset, const Run& run) const = 0;

  /// Where runs of allocation data have their host offset.
  virtual const File& data_file() const = 0;

  /// Tells the kernel that this run will be read soon; a hint.
  virtual void will_need(const Run& run) const = 0;
};

}  // namespace nbdelta::image
