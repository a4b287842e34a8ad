#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace nbdelta::image {

/// A bounded cache of blocks of bytes, least recently used out first. The plugin's only mutable
/// state.
///
/// Invariants
/// 1. The blocks that the cache holds, and those being loaded, take at most `capacity` bytes.
/// 2. A block is loaded by one thread at a time; others that ask for it wait for that load.
/// 3. A load that threw leaves nothing behind; the next asker tries again.
/// What a caller still holds may outlive its place in the cache.
class BlockCache {
 public:
  using Bytes = std::vector<std::byte>;
  using Load = std::function<Bytes()>;

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
  std::size_t most_blocks() const { return most_blocks_; }
  /// Loads so far.
  std::uint64_t loads() const;

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
  using Recency = std::list<std::pair<Key, std::shared_ptr<Entry>>>;

  std::shared_ptr<Entry> find_or_add(const Key& key);

  const std::size_t most_blocks_;
  mutable std::mutex mutex_;  // guards all below
  Recency recency_;           // most recently used first
  std::unordered_map<Key, Recency::iterator, Hash> index_;
  std::uint64_t loads_ = 0;
};

}  // namespace nbdelta::image
