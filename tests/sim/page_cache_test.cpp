#include "sim/page_cache.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kPage = PageCache::kPage;
constexpr Clock::Time kStart{1h};

std::vector<Range> take_all(PageCache& cache, std::size_t disk, Range range = kWholeDisk,
                            Clock::Time before = Clock::Time::max()) {
  std::vector<Range> runs;
  while (const auto run = cache.take(disk, range, before))
    runs.push_back(*run);
  return runs;
}

TEST(PageCacheOf, WholePagesAreDirty) {
  PageCache cache(2);
  cache.mark(0, {kPage + 1, 2 * kPage + 1}, kStart);
  EXPECT_EQ(cache.dirty_bytes(), 2 * kPage);
  cache.mark(0, {kPage, kPage + 512}, kStart);
  EXPECT_EQ(cache.dirty_bytes(), 2 * kPage);
  EXPECT_EQ(cache.dirty_bytes(1), 0U);
  EXPECT_EQ(take_all(cache, 1), std::vector<Range>());
  EXPECT_EQ(take_all(cache, 0), (std::vector<Range>{{kPage, 3 * kPage}}));
  EXPECT_EQ(cache.dirty_bytes(), 0U);
}

TEST(PageCacheOf, NeighboursAreOneRunUpToItsLimit) {
  PageCache cache(1);
  cache.mark(0, {10 * kPage, 12 * kPage}, kStart);
  cache.mark(0, {12 * kPage, 13 * kPage}, kStart + 1s);
  cache.mark(0, {14 * kPage, 15 * kPage}, kStart);
  EXPECT_EQ(take_all(cache, 0),
            (std::vector<Range>{{10 * kPage, 13 * kPage}, {14 * kPage, 15 * kPage}}));
  cache.mark(0, {0, PageCache::kLongestRun + kPage}, kStart);
  EXPECT_EQ(take_all(cache, 0),
            (std::vector<Range>{{0, PageCache::kLongestRun},
                                {PageCache::kLongestRun, PageCache::kLongestRun + kPage}}));
}

TEST(PageCacheOf, OnlyOldPagesAndTheirNeighbours) {
  PageCache cache(1);
  cache.mark(0, {0, kPage}, kStart + 5s);
  cache.mark(0, {4 * kPage, 5 * kPage}, kStart);
  cache.mark(0, {5 * kPage, 6 * kPage}, kStart + 5s);
  cache.mark(0, {4 * kPage, 5 * kPage}, kStart + 9s);  // keeps its time
  EXPECT_EQ(take_all(cache, 0, kWholeDisk, kStart), std::vector<Range>());
  EXPECT_EQ(take_all(cache, 0, kWholeDisk, kStart + 1s),
            (std::vector<Range>{{4 * kPage, 6 * kPage}}));
  EXPECT_EQ(cache.dirty_bytes(), kPage);
}

TEST(PageCacheOf, OnlyTheRange) {
  PageCache cache(1);
  cache.mark(0, {0, 10 * kPage}, kStart);
  EXPECT_EQ(take_all(cache, 0, {2 * kPage, 4 * kPage}),
            (std::vector<Range>{{2 * kPage, 4 * kPage}}));
  EXPECT_EQ(take_all(cache, 0, {5 * kPage + 1, 6 * kPage + 1}),
            (std::vector<Range>{{5 * kPage, 7 * kPage}}));  // pages that it touches
  EXPECT_EQ(cache.dirty_bytes(), 6 * kPage);
}

TEST(PageCacheOf, WhatIsErasedIsForgottenWherePagesAreCoveredAsAWhole) {
  PageCache cache(1);
  cache.mark(0, {0, 10 * kPage}, kStart);
  cache.forget(0, {kPage + 1, 4 * kPage + 5});
  EXPECT_EQ(take_all(cache, 0), (std::vector<Range>{{0, 2 * kPage}, {4 * kPage, 10 * kPage}}));
  cache.mark(0, {0, kPage}, kStart);
  cache.forget(0, {1, 2});
  EXPECT_EQ(cache.dirty_bytes(), kPage);
}

}  // namespace
}  // namespace nbdelta::sim
