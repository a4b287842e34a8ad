#include "image/block_cache.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/support/random.hpp"

namespace nbdelta::testing {
namespace {

using image::BlockCache;
using Key = BlockCache::Key;

BlockCache::Bytes block_of(const Key& key) {
  return BlockCache::Bytes(16, static_cast<std::byte>(key.offset * 7 + key.source));
}

/// Whether the cache has to load that block.
bool loads(BlockCache& cache, const Key& key) {
  bool loaded = false;
  const auto block = cache.get(key, [&](BlockCache::Bytes& fresh) {
    loaded = true;
    fresh = block_of(key);
  });
  EXPECT_EQ(*block, block_of(key));
  return loaded;
}

TEST(BlockCache, HoldsAsMuchAsItMayAndNoMore) {
  BlockCache cache(4 * 16 + 15, 16);
  ASSERT_EQ(cache.most_blocks(), 4U);
  for (std::uint64_t i = 0; i < 4; ++i)
    EXPECT_TRUE(loads(cache, {0, i}));
  for (std::uint64_t i = 0; i < 4; ++i)
    EXPECT_FALSE(loads(cache, {0, i}));
  EXPECT_TRUE(loads(cache, {0, 4}));
  EXPECT_TRUE(loads(cache, {0, 0})) << "the oldest one had to go";
  EXPECT_EQ(cache.loads(), 6U);
}

TEST(BlockCache, LeastRecentlyUsedGoesFirst) {
  BlockCache cache(3 * 16, 16);
  for (std::uint64_t i = 0; i < 3; ++i)
    loads(cache, {0, i});
  EXPECT_FALSE(loads(cache, {0, 0}));
  EXPECT_TRUE(loads(cache, {0, 3}));
  EXPECT_FALSE(loads(cache, {0, 0}));
  EXPECT_TRUE(loads(cache, {0, 1}));
}

TEST(BlockCache, HoldsOneBlockAtLeast) {
  BlockCache cache(1, 16);
  EXPECT_EQ(cache.most_blocks(), 1U);
  EXPECT_TRUE(loads(cache, {0, 0}));
  EXPECT_FALSE(loads(cache, {0, 0}));
}

TEST(BlockCache, TellsSourcesApart) {
  BlockCache cache(1024, 16);
  EXPECT_TRUE(loads(cache, {0, 5}));
  EXPECT_TRUE(loads(cache, {1, 5}));
  EXPECT_FALSE(loads(cache, {0, 5}));
}

TEST(BlockCache, BlockOutlivesItsPlace) {
  BlockCache cache(16, 16);
  const auto held = cache.get({0, 0}, [](BlockCache::Bytes& fresh) { fresh = block_of({0, 0}); });
  loads(cache, {0, 1});
  EXPECT_EQ(*held, block_of({0, 0}));
}

TEST(BlockCache, LoadThatThrewLeavesNothing) {
  BlockCache cache(2 * 16, 16);
  EXPECT_TRUE(loads(cache, {0, 1}));
  EXPECT_TRUE(loads(cache, {0, 2}));
  for (int i = 0; i < 3; ++i)
    EXPECT_THROW(cache.get({0, 0}, [](BlockCache::Bytes&) { throw std::runtime_error("no"); }),
                 std::runtime_error);
  EXPECT_TRUE(loads(cache, {0, 0}));
  EXPECT_FALSE(loads(cache, {0, 0}));
  EXPECT_FALSE(loads(cache, {0, 2})) << "it was not the oldest one";
}

TEST(BlockCache, MemoryOfABlockGoesToTheNext) {
  BlockCache cache(2 * 16, 16);
  std::set<const std::byte*> places;
  for (std::uint64_t i = 0; i < 100; ++i)
    places.insert(cache.get({0, i}, [](BlockCache::Bytes& fresh) { fresh.resize(16); })->data());
  EXPECT_LE(places.size(), 2U);
}

TEST(BlockCache, ManyThreadsThatAskForOneBlockLoadItOnce) {
  for (std::uint64_t round = 0; round < 20; ++round) {
    BlockCache cache(1024, 16);
    std::atomic<int> loaded{0};
    std::vector<std::jthread> threads;
    for (int i = 0; i < 8; ++i)
      threads.emplace_back([&] {
        const auto block = cache.get({0, 0}, [&](BlockCache::Bytes& fresh) {
          ++loaded;
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
          fresh = block_of({0, 0});
        });
        EXPECT_EQ(*block, block_of({0, 0}));
      });
    threads.clear();
    EXPECT_EQ(loaded, 1);
    EXPECT_EQ(cache.loads(), 1U);
  }
}

TEST(BlockCache, ThreadsThatWaitedForALoadThatThrewTryThemselves) {
  BlockCache cache(1024, 16);
  std::atomic<int> loaded{0};
  std::atomic<int> failed{0};
  std::vector<std::jthread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      try {
        cache.get({0, 0}, [&](BlockCache::Bytes& fresh) {
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
          if (loaded++ < 3)
            throw std::runtime_error("no");
          fresh = block_of({0, 0});
        });
      } catch (const std::runtime_error&) {
        ++failed;
      }
    });
  threads.clear();
  EXPECT_EQ(failed, 3);
  EXPECT_EQ(loaded, 4);
}

TEST(BlockCache, ManyThreadsAndBlocksAtOnce) {
  const std::uint64_t seed = Random::from_environment().seed();
  BlockCache cache(10 * 16, 16);
  std::vector<std::jthread> threads;
  for (std::uint64_t i = 0; i < 4; ++i)
    threads.emplace_back([&cache, seed, i] {
      Random random(seed + i);
      for (int n = 0; n < 20'000; ++n) {
        const Key key{random.below(2), random.below(12)};
        const bool fails = random.chance(5);
        try {
          const auto block = cache.get(key, [&](BlockCache::Bytes& fresh) {
            if (fails)
              throw std::runtime_error("no");
            fresh = block_of(key);
          });
          ASSERT_EQ(*block, block_of(key));
        } catch (const std::runtime_error&) {
          ASSERT_TRUE(fails);
        }
      }
    });
}

}  // namespace
}  // namespace nbdelta::testing
