#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

namespace nbdelta::image {

/// A bounded cache of blocks of bytes, least recently used out first (nearly: each part of the
/// cache for itself). Caches are all that changes in a Disk once it is open.
///
/// Invariants
/// 1. The blocks that the cache holds take at most `capacity` bytes. What a caller still holds or
///    loads may outlive its place in the cache, one block a thread.
/// 2. A block is loaded by one thread at a time; others that ask for it wait for that load.
/// 3. A load that threw leaves nothing behind; the next asker tries again.
/// 4. A block's memory goes to the next block, never back to malloc, whose arenas (one a thread)
///    would grow to several times the capacity where one thread frees what another allocated. It
///    is allocated for many blocks at a time, to save system calls.
class BlockCache {
 public:
  /// What was loaded.
  using Bytes = std::span<const std::byte>;
  /// Fills a block of `largest_block` bytes from its beginning, and returns how many it has filled.
  using Load = std::function<std::size_t(std::span<std::byte> block)>;

  struct Key {
    std::uint64_t source = 0;  // which file, counted by its opener
    std::uint64_t offset = 0;
    bool operator==(const Key&) const = default;
  };

  /// `capacity` is in bytes; `largest_block` is what any load returns at most, and is what each
  /// block is counted as.
  BlockCache(std::size_t capacity, std::size_t largest_block);

  /// The block, from the cache or from `load`, which runs without the cache's mutex.
  std::shared_ptr<const Bytes> get(const Key& key, const Load& load);

  /// Blocks that are held at most.
  std::size_t most_blocks() const { return blocks_of_shard_ * shards_.size(); }
  /// Loads so far.
  std::uint64_t loads() const { return loads_; }

 private:
  struct Entry {
    std::mutex loading;
    std::shared_ptr<const Bytes> bytes;  // guarded by `loading`
  };
  struct Hash {
    std::size_t operator()(const Key& key) const noexcept {
      return static_cast<std::size_t>((key.offset ^ key.source << 56) * 0x9e3779b97f4a7c15U);
    }
  };
  struct Block {
    std::byte* memory = nullptr;
    Bytes loaded;
  };
  /// Lives as long as the last block.
  struct Pool {
    std::mutex mutex;                                  // guards all below
    std::vector<std::unique_ptr<std::byte[]>> memory;  // of all blocks
    std::size_t blocks = 0;
    std::vector<std::unique_ptr<Block>> unused;  // those that nobody holds; has room for all
  };
  using Recency = std::list<std::pair<Key, std::shared_ptr<Entry>>>;
  /// A part of the cache with a mutex of its own: threads that look for different blocks seldom
  /// wait for each other.
  struct Shard {
    std::mutex mutex;  // guards all below
    Recency recency;   // most recently used first
    std::unordered_map<Key, Recency::iterator, Hash> index;
  };

  std::shared_ptr<Entry> find_or_add(const Key& key);
  std::shared_ptr<Block> unused_block() const;
  void allocate_blocks(Pool& pool) const;

  const std::size_t largest_block_;
  const std::size_t blocks_of_shard_;
  std::vector<Shard> shards_;
  const std::shared_ptr<Pool> pool_ = std::make_shared<Pool>();
  std::atomic<std::uint64_t> loads_{0};
};

}  // namespace nbdelta::image
