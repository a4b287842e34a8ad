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
  ++loads_;
  return recency_.front().second;
}

std::shared_ptr<const BlockCache::Bytes> BlockCache::get(const Key& key, const Load& load) {
  const std::shared_ptr<Entry> entry = find_or_add(key);
  const std::lock_guard lock(entry->loading);
  if (entry->bytes == nullptr)
    entry->bytes = std::make_shared<const Bytes>(load());
  return entry->bytes;
}

std::uint64_t BlockCache::loads() const {
  const std::lock_guard lock(mutex_);
  return loads_;
}

}  // namespace nbdelta::image
