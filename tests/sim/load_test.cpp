#include "sim/load.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;
using Kind = Request::Kind;

constexpr std::uint64_t kDisk = std::uint64_t{64} << 20;
constexpr std::uint64_t kRequest = 16384;
constexpr std::uint64_t kPlaces = kDisk / kRequest;

LoadSetup setup_of(Pattern pattern) {
  LoadSetup setup;
  setup.pattern = pattern;
  setup.request = kRequest;
  return setup;
}

std::vector<Request> draw(const LoadSetup& setup, std::size_t count, std::uint64_t seed = 7) {
  const auto load = make_load(setup, kDisk, seed);
  std::vector<Request> requests;
  while (requests.size() < count) {
    const std::optional<Request> request = load->next();
    if (!request)
      break;
    requests.push_back(*request);
  }
  return requests;
}

double share_of(const std::vector<Request>& requests, Kind kind) {
  return static_cast<double>(std::count_if(requests.begin(), requests.end(),
                                           [&](const Request& r) { return r.kind == kind; })) /
         static_cast<double>(requests.size());
}

TEST(Load, SequentialGoesOnWhereItWasAndBeginsAgain) {
  LoadSetup setup = setup_of(Pattern::sequential);
  setup.area = 10 * kRequest;
  const std::vector<Request> requests = draw(setup, 25);
  for (std::size_t i = 0; i < requests.size(); ++i)
    EXPECT_EQ(requests[i], (Request{Kind::write, i % 10 * kRequest, kRequest, 0ns})) << i;
}

TEST(Load, UniformIsEvenOverTheArea) {
  LoadSetup setup = setup_of(Pattern::uniform);
  setup.area = 64 * kRequest;
  constexpr std::size_t kCount = 64'000;
  std::vector<double> hits(64);
  for (const Request& request : draw(setup, kCount)) {
    ASSERT_LT(request.offset, setup.area);
    ASSERT_EQ(request.offset % kRequest, 0U);
    ++hits[request.offset / kRequest];
  }
  double chi_squared = 0;
  for (const double count : hits)
    chi_squared += (count - 1000) * (count - 1000) / 1000;
  // 63 degrees of freedom: 99.9 % of uniform draws are below 103.4, and 0.1 % below 32.
  EXPECT_LT(chi_squared, 103.4);
  EXPECT_GT(chi_squared, 32);
}

/// The shares of the most frequent values are those of the definition.
TEST(Load, ZipfHasItsShares) {
  for (const double skew : {0.0, 0.5, 0.99, 1.0, 1.2, 2.5}) {
    constexpr std::uint64_t kCount = 1000;
    constexpr int kDraws = 200'000;
    const Zipf zipf(kCount, skew);
    Random random(3);
    std::vector<int> hits(kCount);
    for (int i = 0; i < kDraws; ++i)
      ++hits.at(zipf.draw(random));
    double total = 0;
    for (std::uint64_t i = 1; i <= kCount; ++i)
      total += std::pow(static_cast<double>(i), -skew);
    for (const std::uint64_t rank : {1U, 2U, 3U, 10U, 100U, 1000U}) {
      const double expected = kDraws * std::pow(static_cast<double>(rank), -skew) / total;
      EXPECT_NEAR(hits[rank - 1], expected, 4.5 * std::sqrt(expected) + 1)
          << "skew " << skew << ", rank " << rank;
    }
  }
}

TEST(Load, ZipfOfOnePlace) {
  const Zipf zipf(1, 0.99);
  Random random(1);
  for (int i = 0; i < 100; ++i)
    ASSERT_EQ(zipf.draw(random), 0U);
}

/// The places of many writes are not neighbours, and no two ranks share one.
TEST(Load, ZipfIsScatteredOverTheArea) {
  LoadSetup setup = setup_of(Pattern::zipf);
  setup.skew = 1.2;
  std::map<std::uint64_t, int> hits;
  for (const Request& request : draw(setup, 100'000))
    ++hits[request.offset / kRequest];
  std::vector<std::pair<int, std::uint64_t>> order;
  for (const auto& [place, count] : hits)
    order.emplace_back(count, place);
  std::sort(order.rbegin(), order.rend());
  EXPECT_GT(order[0].first, 15'000);  // 1 / zeta(1.2) of 4096 is 0.23
  const std::uint64_t first = order[0].second;
  const std::uint64_t second = order[1].second;
  EXPECT_GT(std::max(first, second) - std::min(first, second), kPlaces / 16);
  EXPECT_GT(hits.size(), kPlaces / 3);
}

/// The log is written one after the other, and each of its writes is synced before what comes next.
TEST(Load, ADatabaseSyncsItsLogWithEachTransaction) {
  std::uint64_t next_log = 0;
  std::size_t pages = 0;
  std::size_t transactions = 0;
  const std::vector<Request> requests = draw(setup_of(Pattern::database), 6000);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (requests[i].kind != Kind::sync)
      continue;
    const Request& log = requests[i - 1];
    EXPECT_EQ(log.kind, Kind::write);
    EXPECT_EQ(log.offset, next_log);
    EXPECT_EQ(requests[i].offset, log.offset);
    EXPECT_EQ(requests[i].length, log.length);
    next_log = (next_log + kRequest) % (kPlaces / 16 * kRequest);
    for (std::size_t k = 2; k <= 5; ++k) {
      EXPECT_GE(requests[i - k].offset, kPlaces / 16 * kRequest);
      ++pages;
    }
    ++transactions;
  }
  EXPECT_EQ(transactions, 1000U);
  EXPECT_EQ(pages, 4000U);
}

TEST(Load, IdleIsSlowAndSynced) {
  Clock::Duration time{};
  std::uint64_t bytes = 0;
  const std::vector<Request> requests = draw(setup_of(Pattern::idle), 5000);
  for (const Request& request : requests) {
    time += request.gap;
    if (request.kind == Kind::write)
      bytes += request.length;
    EXPECT_LE(request.offset + request.length, kDisk);
  }
  const double rate = static_cast<double>(bytes) / std::chrono::duration<double>(time).count();
  EXPECT_NEAR(rate, 20 * 1024, 2500);
  EXPECT_NEAR(share_of(requests, Kind::sync), 1 / 5.5, 0.02);  // a burst is 1 to 8 files
}

TEST(Load, TheRateIsThatOfAllPrograms) {
  for (const Pattern pattern :
       {Pattern::sequential, Pattern::uniform, Pattern::zipf, Pattern::database}) {
    LoadSetup setup = setup_of(pattern);
    setup.rate = 1 << 20;
    setup.programs = 4;
    Clock::Duration time{};
    std::uint64_t bytes = 0;
    for (const Request& request : draw(setup, 20'000)) {
      time += request.gap;
      bytes += request.kind == Kind::sync ? 0 : request.length;
    }
    const double rate = static_cast<double>(bytes) / std::chrono::duration<double>(time).count();
    EXPECT_NEAR(rate, (1 << 20) / 4, 15'000) << static_cast<int>(pattern);
  }
}

TEST(Load, SharesOfZerosAndDiscards) {
  LoadSetup setup = setup_of(Pattern::uniform);
  setup.zero_share = 0.2;
  setup.discard_share = 0.1;
  const std::vector<Request> requests = draw(setup, 20'000);
  EXPECT_NEAR(share_of(requests, Kind::zero), 0.2, 0.015);
  EXPECT_NEAR(share_of(requests, Kind::discard), 0.1, 0.015);
  EXPECT_NEAR(share_of(requests, Kind::write), 0.7, 0.015);
}

TEST(Load, ASyncAfterSoManyRequests) {
  LoadSetup setup = setup_of(Pattern::uniform);
  setup.sync_every = 3;
  const std::vector<Request> requests = draw(setup, 16);
  for (std::size_t i = 0; i < requests.size(); ++i)
    EXPECT_EQ(requests[i].kind == Kind::sync, i % 4 == 3) << i;
}

TEST(Load, ASyncIsOfTheFileThatWasWrittenTo) {
  LoadSetup setup = setup_of(Pattern::uniform);
  setup.sync_every = 1;
  setup.files = 8;
  const std::vector<Request> requests = draw(setup, 1000);
  for (std::size_t i = 0; i < requests.size(); i += 2) {
    EXPECT_EQ(requests[i + 1].length, kDisk / 8);
    EXPECT_EQ(requests[i + 1].offset, requests[i].offset / (kDisk / 8) * (kDisk / 8));
  }
}

TEST(Load, TheSeedDecidesAll) {
  for (const Pattern pattern :
       {Pattern::uniform, Pattern::zipf, Pattern::database, Pattern::idle}) {
    EXPECT_EQ(draw(setup_of(pattern), 500, 1), draw(setup_of(pattern), 500, 1));
    EXPECT_NE(draw(setup_of(pattern), 500, 1), draw(setup_of(pattern), 500, 2));
  }
}

/// Disks smaller than a request, of one granule, with any pattern: nothing reaches beyond them.
TEST(Load, SmallDisks) {
  for (const Pattern pattern :
       {Pattern::sequential, Pattern::uniform, Pattern::zipf, Pattern::database, Pattern::idle})
    for (const std::uint64_t disk : {4096U, 65536U, 81920U}) {
      LoadSetup setup = setup_of(pattern);
      setup.request = 65536;
      const auto load = make_load(setup, disk, 1);
      for (int i = 0; i < 200; ++i) {
        const Request request = *load->next();
        ASSERT_LE(request.offset + request.length, disk) << static_cast<int>(pattern);
        ASSERT_TRUE(request.kind == Kind::sync || request.length > 0);
      }
    }
}

TEST(Load, ATraceGoesAtItsTimesAndEnds) {
  using Entry = TraceEntry;
  LoadSetup setup = setup_of(Pattern::trace);
  setup.trace = {{Entry::Kind::write, 0, 4096, 8192, 100us},
                 {Entry::Kind::trim, 0, 0, 65536, 400us},
                 {Entry::Kind::sync, 0, 0, 0, 400us}};
  EXPECT_EQ(draw(setup, 10), (std::vector<Request>{{Kind::write, 4096, 8192, 100us},
                                                   {Kind::discard, 0, 65536, 300us},
                                                   {Kind::sync, 0, kDisk, 0us}}));
}

}  // namespace
}  // namespace nbdelta::sim
