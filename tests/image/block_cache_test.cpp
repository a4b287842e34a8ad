#include "image/block_cache.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <set>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/support/random.hpp"

namespace nbdelta::testing {
namespace {

using image::BlockCache;
using Key = BlockCache::Key;

/// What a block of 16 bytes is loaded with.
std::size_t fill(std::span<std::byte> block, const Key& key) {
  std::ranges::fill(block, static_cast<std::byte>(key.offset * 7 + key.source));
  return block.size();
}

void expect_block(BlockCache::Bytes bytes, const Key& key) {
  std::array<std::byte, 16> expected{};
  fill(expected, key);
  EXPECT_TRUE(std::ranges::equal(bytes, expected));
}

/// Whether the cache has to load that block.
bool loads(BlockCache& cache, const Key& key) {
  bool loaded = false;
  const auto block = cache.get(key, [&](std::span<std::byte> fresh) {
    loaded = true;
    return fill(fresh, key);
  });
  expect_block(*block, key);
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
  const auto held = cache.get({0, 0}, [](std::span<std::byte> fresh) {
    return fill(fresh, {0, 0});
  });
  loads(cache, {0, 1});
  expect_block(*held, {0, 0});
}

TEST(BlockCache, LoadThatThrewLeavesNothing) {
  BlockCache cache(2 * 16, 16);
  EXPECT_TRUE(loads(cache, {0, 1}));
  EXPECT_TRUE(loads(cache, {0, 2}));
  for (int i = 0; i < 3; ++i)
    EXPECT_THROW(
        cache.get({0, 0},
                  [](std::span<std::byte>) -> std::size_t { throw std::runtime_error("no"); }),
        std::runtime_error);
  EXPECT_TRUE(loads(cache, {0, 0}));
  EXPECT_FALSE(loads(cache, {0, 0}));
  EXPECT_FALSE(loads(cache, {0, 2})) << "it was not the oldest one";
}

TEST(BlockCache, MemoryOfABlockGoesToTheNext) {
  BlockCache cache(2 * 16, 16);
  std::set<const std::byte*> places;
  for (std::uint64_t i = 0; i < 100; ++i)
    places.insert(
        cache.get({0, i},
                  [&](std::span<std::byte> fresh) {
                    return fill(fresh, {0, i});
                  })
            ->data());
  EXPECT_LE(places.size(), 2U);
}

TEST(BlockCache, ManyThreadsThatAskForOneBlockLoadItOnce) {
  for (std::uint64_t round = 0; round < 20; ++round) {
    BlockCache cache(1024, 16);
    std::atomic<int> loaded{0};
    std::vector<std::jthread> threads;
    for (int i = 0; i < 8; ++i)
      threads.emplace_back([&] {
        const auto block = cache.get({0, 0}, [&](std::span<std::byte> fresh) {
          ++loaded;
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
          return fill(fresh, {0, 0});
        });
        expect_block(*block, {0, 0});
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
        cache.get({0, 0}, [&](std::span<std::byte> fresh) {
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
          if (loaded++ < 3)
            throw std::runtime_error("no");
          return fill(fresh, {0, 0});
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
          const auto block = cache.get(key, [&](std::span<std::byte> fresh) {
            if (fails)
              throw std::runtime_error("no");
            return fill(fresh, key);
          });
          expect_block(*block, key);
        } catch (const std::runtime_error&) {
          ASSERT_TRUE(fails);
        }
      }
    });
}

}  // namespace
}  // namespace nbdelta::testing
