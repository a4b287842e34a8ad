#include "image/block_cache.hpp"

#include <algorithm>

namespace nbdelta::image {

BlockCache::BlockCache(std::size_t capacity, std::size_t largest_block)
    : most_blocks_(std::max<std::size_t>(capacity / largest_block, 1)) {}

std::shared_ptr<BlockCache::Entry> BlockCache::find_or_add(const Key& key) {
  const std::lock_guard lock(mutex_);
  if (const auto found = index_.find(key); found != index_.end()) {
    recency_.splice(recency_.begin(), recency_, found->second);
    return found->second->second;
  }
  if (recency_.size() == most_blocks_) {
    index_.erase(recency_.back().first);
    recency_.pop_back();
  }
  recency_.emplace_front(key, std::make_shared<Entry>());
  index_.emplace(key, recency_.begin());
  return recency_.front().second;
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
