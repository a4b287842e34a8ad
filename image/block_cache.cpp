#include "image/block_cache.hpp"

#include <algorithm>
#include <iterator>

#include "base/arithmetic.hpp"

namespace nbdelta::image {
namespace {

constexpr std::size_t kShards = 8;
constexpr std::size_t kLeastBlocks =
    128;  // of each: one that is small forgets what is still wanted

constexpr std::size_t kAllocated = 256 * kKiB;  // at a time

std::size_t shards(std::size_t capacity, std::size_t largest_block) {
  return capacity / largest_block < kShards * kLeastBlocks ? 1 : kShards;
}

}  // namespace

BlockCache::BlockCache(std::size_t capacity, std::size_t largest_block)
    : largest_block_(largest_block),
      blocks_of_shard_(
          std::max<std::size_t>(capacity / largest_block / shards(capacity, largest_block), 1)),
      shards_(shards(capacity, largest_block)) {}

std::shared_ptr<BlockCache::Entry> BlockCache::find_or_add(const Key& key) {
  Recency evicted;  // goes when the mutex is free again
  Shard& shard = shards_[(Hash()(key) >> 32) % shards_.size()];
  const std::lock_guard lock(shard.mutex);
  if (const auto found = shard.index.find(key); found != shard.index.end()) {
    shard.recency.splice(shard.recency.begin(), shard.recency, found->second);
    return found->second->second;
  }
  if (shard.recency.size() == blocks_of_shard_) {
    shard.index.erase(shard.recency.back().first);
    evicted.splice(evicted.begin(), shard.recency, std::prev(shard.recency.end()));
  }
  shard.recency.emplace_front(key, std::make_shared<Entry>());
  shard.index.emplace(key, shard.recency.begin());
  return shard.recency.front().second;
}

std::shared_ptr<BlockCache::Block> BlockCache::unused_block() const {
  std::unique_ptr<Block> block;
  {
    const std::lock_guard lock(pool_->mutex);
    if (pool_->unused.empty())
      allocate_blocks(*pool_);
    block = std::move(pool_->unused.back());
    pool_->unused.pop_back();
  }
  const auto give_back = [pool = pool_](Block* unheld) {
    const std::lock_guard lock(pool->mutex);
    pool->unused.emplace_back(unheld);
  };
  return {block.release(), give_back};
}

void BlockCache::allocate_blocks(Pool& pool) const {
  const std::size_t count = std::clamp<std::size_t>(kAllocated / largest_block_, 1, most_blocks());
  pool.unused.reserve(pool.blocks + count);  // giving back must not fail
  pool.memory.push_back(std::make_unique_for_overwrite<std::byte[]>(count * largest_block_));
  for (std::size_t i = 0; i < count; ++i, ++pool.blocks)
    pool.unused.push_back(std::make_unique<Block>(
        Block{.memory = pool.memory.back().get() + i * largest_block_, .loaded = {}}));
}

std::shared_ptr<const BlockCache::Bytes> BlockCache::get(const Key& key, const Load& load) {
  const std::shared_ptr<Entry> entry = find_or_add(key);
  const std::lock_guard lock(entry->loading);
  if (entry->bytes == nullptr) {
    ++loads_;
    const std::shared_ptr<Block> block = unused_block();
    const std::span memory(block->memory, largest_block_);
    block->loaded = memory.first(load(memory));
    entry->bytes = std::shared_ptr<const Bytes>(block, &block->loaded);
  }
  return entry->bytes;
}

}  // namespace nbdelta::image
