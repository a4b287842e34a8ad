#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/big_endian.hpp"
#include "base/file.hpp"
#include "image/block_cache.hpp"

namespace nbdelta::image {

/// What somebody who goes through a table saw of it last; for one thread.
class MetadataWindow {
 private:
  friend class MetadataReader;
  std::uint64_t begin_ = 0;  // bytes [begin_, end_) of the file
  std::uint64_t end_ = 0;
  std::unique_ptr<std::byte[]> bytes_;
  std::size_t room_ = 0;  // of bytes_
};

/// Reads tables (L1, L2, bitmaps) of one image file in pieces, so that no table needs to be in
/// memory as a whole: through a cache of aligned blocks of the file, or past it by somebody's
/// window. Safe to call from several threads.
class MetadataReader {
 public:
  /// What one read fetches. 4 KiB hold the L2 entries of 32 MiB at 64 KiB a cluster: where little
  /// of a large disk has changed, more would be copied for nothing.
  static constexpr std::size_t kBlock = 4 * 1024;
  static constexpr std::size_t kLongestRead = 64 * 1024;

  /// `file` and `cache` must outlive the reader; `source` tells the file from others in the cache.
  MetadataReader(const File& file, BlockCache& cache, std::uint64_t source)
      : file_(&file), cache_(&cache), source_(source), file_size_(file.size()) {}

  const File& file() const { return *file_; }
  std::uint64_t file_size() const { return file_size_; }

  /// Entries [first, first + count) of a table of 64-bit numbers, as many as one block holds and
  /// at least one. Keeps its block alive.
  class Entries {
   public:
    std::size_t size() const { return count_; }
    std::uint64_t operator[](std::size_t i) const {
      return *reinterpret_cast<const be64*>(bytes_ + i * sizeof(be64));
    }
    /// Without the first `count`, which must be fewer.
    Entries without(std::size_t count) const {
      Entries rest;
      rest.bytes_ = bytes_ + count * sizeof(be64);
      rest.count_ = count_ - count;
      return rest;
    }

   private:
    friend class MetadataReader;
    std::shared_ptr<const BlockCache::Bytes> block_;
    const std::byte* bytes_ = nullptr;
    std::size_t count_ = 0;
  };

  /// `offset` is that of entry `first`, a multiple of 8; count > 0. Throws Error that names `table`
  /// where it is past the end of the file.
  Entries entries(std::uint64_t offset, std::uint64_t count, std::string_view table) const;

  /// The same for somebody who goes through the table, past the cache: what the window shows costs
  /// next to nothing, and the further one went the more is read at a time, up to kLongestRead.
  /// Valid until the window is used again.
  Entries entries(std::uint64_t offset, std::uint64_t count, std::string_view table,
                  MetadataWindow& window) const;

  /// Bytes [offset, offset + length), cut where the window ends; at least one byte. As before,
  /// valid until the window is used again.
  std::span<const std::byte> bytes(std::uint64_t offset, std::uint64_t length,
                                   std::string_view table, MetadataWindow& window) const;

  /// Tells the kernel that the block of this offset will be read soon.
  void will_need(std::uint64_t offset) const noexcept;

 private:
  [[noreturn]] void refuse_past_end(std::uint64_t offset, std::string_view table) const;
  void move_window(MetadataWindow& window, std::uint64_t offset, std::uint64_t length) const;

  const File* file_;
  BlockCache* cache_;
  std::uint64_t source_;
  std::uint64_t file_size_;
};

}  // namespace nbdelta::image
