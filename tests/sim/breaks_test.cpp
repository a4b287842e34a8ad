#include "tests/sim/breaks.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "client/backup/breaks.hpp"
#include "sim/explore.hpp"

/// This program has client/backup compiled with its breaks: explore must find each of them.
namespace nbdelta {
namespace testing {
namespace {

constexpr std::uint64_t kMostSeeds = 10'000;

thread_local std::string_view made_now;

bool is_known(std::string_view name) {
  return std::any_of(std::begin(kBreaks), std::end(kBreaks),
                     [&](const Break& each) { return each.name == name; });
}

struct Found {
  std::uint64_t seed = 0;
  std::string violation;
};

std::optional<Found> try_seed(std::uint64_t seed) {
  const sim::Explored explored = sim::explore(sim::Schedule::of_seed(seed));
  if (!explored.violation)
    return std::nullopt;
  return Found{seed, *explored.violation};
}

/// The seed that is known first: a search may take minutes.
std::optional<Found> find(const Break& mistake) {
  made_now = mistake.name;
  std::optional<Found> found;
  if (mistake.seed != 0)
    found = try_seed(mistake.seed);
  for (std::uint64_t seed = 1; !found && seed <= kMostSeeds; ++seed)
    found = try_seed(seed);
  made_now = {};
  return found;
}

std::vector<std::optional<Found>> find_all() {
  std::vector<std::optional<Found>> found(std::size(kBreaks));
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < found.size(); i = next++)
      found[i] = find(kBreaks[i]);
  };
  std::vector<std::thread> threads(std::max(1U, std::thread::hardware_concurrency()));
  for (std::thread& thread : threads)
    thread = std::thread(work);
  for (std::thread& thread : threads)
    thread.join();
  return found;
}

TEST(Breaks, ExploreFindsEach) {
  const std::vector<std::optional<Found>> found = find_all();
  for (std::size_t i = 0; i < found.size(); ++i) {
    const Break& mistake = kBreaks[i];
    const std::string violation = found[i] ? found[i]->violation : "NOT FOUND";
    std::cout << fmt::format("{:32} seed {:5}  {}\n", mistake.name, found[i] ? found[i]->seed : 0,
                             violation.substr(0, violation.find('\n')));
    EXPECT_TRUE(found[i]) << mistake.name << " (" << mistake.mistake << ") in " << kMostSeeds
                          << " seeds";
    if (!found[i])
      continue;
    EXPECT_FALSE(try_seed(found[i]->seed))
        << "seed " << found[i]->seed << " fails without the mistake, and says nothing of it";
  }
}

/// Where only something has to be left away for another violation to be met first.
TEST(Breaks, WhatIsMadeSmallerShowsTheSameViolation) {
  const struct {
    std::string_view mistake;
    std::uint64_t seed;
  } kCases[] = {{"commit-while-served", 1}, {"finalized-without-mark", 209}};
  for (const auto& [mistake, seed] : kCases) {
    SCOPED_TRACE(mistake);
    made_now = mistake;
    const sim::Schedule whole = sim::Schedule::of_seed(seed);
    const sim::Schedule small = sim::shrink(whole);
    const sim::Explored before = sim::explore(whole);
    const sim::Explored after = sim::explore(small);
    made_now = {};
    ASSERT_TRUE(before.violation);
    ASSERT_TRUE(after.violation);
    EXPECT_EQ(sim::kind_of(*after.violation), sim::kind_of(*before.violation));
    EXPECT_LT(small.sessions.size(), whole.sessions.size());
  }
}

TEST(Breaks, WhatIsShippedHasNoneOfThem) {
  for (const char* program : {NBDELTA_CLIENT, NBDELTA_SIM}) {
    std::ifstream file(program, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    // Something of the sources that have the breaks.
    ASSERT_NE(bytes.find("whether the guest is frozen cannot be told"), std::string::npos)
        << program;
    EXPECT_EQ(bytes.find("backup6broken"), std::string::npos) << program;  // as a linker calls it
    for (const Break& mistake : kBreaks)
      EXPECT_EQ(bytes.find(mistake.name), std::string::npos) << program << ": " << mistake.name;
  }
}

}  // namespace

bool make_now(std::string_view name) {
  if (!is_known(name)) {
    std::cerr << fmt::format("tests/sim/breaks.hpp does not list '{}'\n", name);
    std::abort();
  }
  return name == made_now;
}

}  // namespace testing

bool client::backup::broken(std::string_view name) {
  return testing::make_now(name);
}

}  // namespace nbdelta
