#include "client/pull/rate_limiter.hpp"

#include <gtest/gtest.h>

#include "base/arithmetic.hpp"

namespace nbdelta::client::pull {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = RateLimiter::Clock;

constexpr Clock::time_point kStart{seconds(1000)};

TEST(RateLimiter, WithoutLimitNobodyWaits) {
  RateLimiter limiter(0);
  for (int i = 0; i < 100; ++i)
    EXPECT_EQ(limiter.book(kGiB, kStart), Clock::duration::zero());
}

TEST(RateLimiter, KeepsToTheRate) {
  RateLimiter limiter(kMiB);
  Clock::time_point now = kStart;
  for (int i = 0; i < 100; ++i)  // 25 MiB in all
    now += limiter.book(256 * kKiB, now);
  const double took = std::chrono::duration<double>(now - kStart).count();
  EXPECT_NEAR(took, 99 * 0.25, 0.1);
}

TEST(RateLimiter, SharesBetweenThoseWhoAskAtOnce) {
  RateLimiter limiter(kMiB);
  EXPECT_EQ(limiter.book(kMiB, kStart), Clock::duration::zero());
  const auto second = limiter.book(kMiB, kStart);
  const auto third = limiter.book(kMiB, kStart);
  EXPECT_NEAR(std::chrono::duration<double>(third - second).count(), 1.0, 0.001);
}

TEST(RateLimiter, QuietTimesAreNotSavedUp) {
  RateLimiter limiter(kMiB);
  limiter.book(kMiB, kStart);
  const Clock::time_point later = kStart + seconds(1000);
  EXPECT_EQ(limiter.book(kMiB, later), Clock::duration::zero());
  EXPECT_GE(limiter.book(kMiB, later), milliseconds(1000) - RateLimiter::kBurst);
}

}  // namespace
}  // namespace nbdelta::client::pull
