#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "image/extent.hpp"

namespace nbdelta::image {

/// The states of a whole disk, from offset 0 on without gaps: runs in the order of their offsets,
/// held as variable-length numbers in blocks of 4 KiB with an index, so that ten million changed
/// extents on a 16 TiB disk take some 50 MB.
///
/// Invariants
/// 1. Neighbouring runs have different states; no run is empty.
/// 2. The lengths of all runs add up to size().
/// 3. Each block starts at a run; its index entry holds that run's offset and the bytes in state
///    `data` before it.
///
/// Building (append) is for one thread; afterwards any number of threads may read.
class ExtentMap {
 public:
  /// What the encoded runs may take; a map that needs more is refused.
  static constexpr std::size_t kDefaultMemoryLimit = std::size_t{1} << 30;

  explicit ExtentMap(std::size_t memory_limit = kDefaultMemoryLimit)
      : memory_limit_(memory_limit) {}

  /// Adds `length` bytes at the end. Throws Error (ENOMEM) past the memory limit, (EOVERFLOW) past
  /// 2^63-1 bytes.
  void append(std::uint64_t length, State state);
  /// Adds all of `more`, which is left empty; most of its blocks are taken as they are. size() must
  /// be a multiple of 1 GiB, or alignment() may be less than it could be.
  void append(ExtentMap&& more);

  /// Bytes that the map covers.
  std::uint64_t size() const { return size_; }
  std::uint64_t bytes(State state) const { return bytes_[static_cast<std::size_t>(state)]; }
  /// Runs in that state.
  std::uint64_t extents(State state) const { return extents_[static_cast<std::size_t>(state)]; }
  /// Bytes of memory that the runs and the index take.
  std::size_t memory() const;

  /// A place in the map. Valid while the map lives and nothing is appended.
  class Cursor {
   public:
    bool at_end() const { return extent_.length == 0; }
    /// The run at this place; its offset is the run's own.
    const Extent& extent() const { return extent_; }
    /// Bytes in state `data` before extent().offset.
    std::uint64_t data_before() const { return data_before_; }
    void next();

   private:
    friend class ExtentMap;
    const ExtentMap* map_ = nullptr;
    std::size_t block_ = 0;
    std::size_t position_ = 0;  // of the next run in the block
    std::uint64_t data_before_ = 0;
    Extent extent_;
  };

  /// At the run that holds `offset`; at_end() where offset >= size().
  Cursor at(std::uint64_t offset) const;
  Cursor begin() const { return at(0); }
  /// The map in parts of some thousand runs: part n ends where at_part(n + 1) is.
  static constexpr std::size_t kMostRunsOfAPart = 32'769;
  std::size_t parts() const;
  Cursor at_part(std::size_t n) const;
  /// At the run that holds that byte of all in state `data`, counted from the disk's start;
  /// at_end() where there are no more than so many.
  Cursor at_data(std::uint64_t data_before) const;

  /// Calls the sink for the part of each run that lies in [offset, offset + length).
  void for_each(std::uint64_t offset, std::uint64_t length, const ExtentSink& sink) const;

  /// The largest power of two, at most `limit` (a power of two), that divides the offset and the
  /// end of every run but the end of the disk.
  std::uint64_t alignment(std::uint64_t limit) const;

  /// The map as it travels (docs/extents.md, "Packed exports"): blocks of so many bytes.
  static constexpr std::size_t kBlockBytes = 4096;
  std::uint64_t encoded_size() const;
  /// Bytes [offset, offset + out.size()) of that; requires that there are as many.
  void copy_encoded(std::span<std::byte> out, std::uint64_t offset) const;
  /// Adds the runs of one such block, which may come from anybody. Throws Error (EPROTO) that says
  /// what is wrong with it.
  void append_encoded(std::span<const std::byte, kBlockBytes> encoded);

 private:
  struct Block {
    std::uint64_t offset = 0;
    std::uint64_t data_before = 0;
    std::size_t used = 0;
    std::unique_ptr<std::byte[]> bytes;
  };

  void encode_pending();
  Block& add_block();

  std::size_t memory_limit_;
  std::vector<Block> blocks_;
  std::uint64_t size_ = 0;
  std::uint64_t encoded_size_ = 0;
  std::uint64_t boundary_bits_ = 0;  // every run boundary, or-ed together
  Extent pending_;                   // the last run, not yet encoded; empty where there is none
  std::uint64_t pending_data_before_ = 0;
  std::array<std::uint64_t, 4> bytes_{};
  std::array<std::uint64_t, 4> extents_{};
};

/// The map in clusters: a cluster all of whose bytes are in one state keeps it; any other becomes
/// `data` (a mixture holds something changed, and only a whole cluster can be written). A
/// cluster that mixes `zero` and `hole` becomes `zero`.
/// `cluster_size` is a power of two; the last cluster may be cut by the end of the disk.
ExtentMap widen_to_clusters(const ExtentMap& map, std::uint64_t cluster_size);

}  // namespace nbdelta::image
