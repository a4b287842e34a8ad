#include "image/block_cache.hpp"

#include <algorithm>
#include <iterator>

namespace nbdelta::image {
namespace {

constexpr std::size_t kShards = 8;
constexpr std::size_t kLeastBlocks =
    128;  // of each: one that is small forgets what is still wanted

std::size_t shards(std::size_t capacity, std::size_t largest_block) {
  return capacity / largest_block < kShards * kLeastBlocks ? 1 : kShards;
}

}  // namespace

BlockCache::BlockCache(std::size_t capacity, std::size_t largest_block)
    : blocks_of_shard_(
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

std::shared_ptr<BlockCache::Bytes> BlockCache::unused_block() const {
  std::unique_ptr<Bytes> block;
  {
    const std::lock_guard lock(unused_->mutex);
    if (!unused_->blocks.empty()) {
      block = std::move(unused_->blocks.back());
      unused_->blocks.pop_back();
    }
  }
  if (block == nullptr)
    block = std::make_unique<Bytes>();
  const auto give_back = [unused = unused_](Bytes* bytes) {
    const std::lock_guard lock(unused->mutex);
    unused->blocks.emplace_back(bytes);
  };
  return {block.release(), give_back};
}

std::shared_ptr<const BlockCache::Bytes> BlockCache::get(const Key& key, const Load& load) {
  const std::shared_ptr<Entry> entry = find_or_add(key);
  const std::lock_guard lock(entry->loading);
  if (entry->bytes == nullptr) {
    ++loads_;
    const std::shared_ptr<Bytes> block = unused_block();
    load(*block);
    entry->bytes = block;
  }
  return entry->bytes;
}

}  // namespace nbdelta::image
