#include "tests/image/runs.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "base/arithmetic.hpp"
#include "tests/support/sanitizer.hpp"

namespace nbdelta::testing {
namespace {

std::string to_text(const Runs& runs, std::size_t i) {
  if (i >= runs.size())
    return "nothing";
  return fmt::format("[{:#x}, {:#x}) {}", runs[i].offset, runs[i].end(),
                     static_cast<unsigned>(runs[i].state));
}

auto run_at(const Runs& runs, std::uint64_t offset) {
  return std::upper_bound(runs.begin(), runs.end(), offset,
                          [](std::uint64_t at, const Extent& run) { return at < run.end(); });
}

}  // namespace

void append(Runs& runs, std::uint64_t length, State state) {
  if (length == 0)
    return;
  if (!runs.empty() && runs.back().state == state)
    runs.back().length += length;
  else
    runs.push_back({.offset = size_of(runs), .length = length, .state = state});
}

std::uint64_t size_of(const Runs& runs) {
  return runs.empty() ? 0 : runs.back().end();
}

State state_at(const Runs& runs, std::uint64_t offset) {
  return run_at(runs, offset)->state;
}

Runs window(const Runs& runs, std::uint64_t offset, std::uint64_t length) {
  Runs part;
  for (auto run = run_at(runs, offset); run != runs.end() && run->offset < offset + length; ++run) {
    const std::uint64_t from = std::max(run->offset, offset);
    part.push_back({from, std::min(run->end(), offset + length) - from, run->state});
  }
  return part;
}

Runs walk(const image::View& view, std::uint64_t offset, std::uint64_t length) {
  Runs runs;
  std::uint64_t at = offset;
  view.for_each_extent(offset, length, [&](const Extent& extent) {
    EXPECT_EQ(extent.offset, at);
    EXPECT_GT(extent.length, 0U);
    at = extent.end();
    if (!runs.empty() && runs.back().state == extent.state)
      runs.back().length += extent.length;
    else
      runs.push_back(extent);
    return true;
  });
  EXPECT_EQ(at, offset + length);
  return runs;
}

Runs walk(const image::View& view) {
  return walk(view, 0, view.disk().size());
}

Runs runs_of(const image::ExtentMap& map) {
  Runs runs;
  for (auto cursor = map.begin(); !cursor.at_end(); cursor.next())
    runs.push_back(cursor.extent());
  return runs;
}

image::ExtentMap map_of(const Runs& runs) {
  image::ExtentMap map;
  for (const Extent& run : runs)
    map.append(run.length, run.state);
  return map;
}

Runs random_runs(Random& random, std::uint64_t size, std::uint64_t unit, std::uint64_t longest,
                 const std::vector<State>& states) {
  Runs runs;
  while (size_of(runs) < size) {
    // Short and long ones alike.
    std::uint64_t length = random.between(1, longest) >> random.below(24);
    if (random.chance(80))
      length = round_up(length, unit);
    append(runs, std::clamp<std::uint64_t>(length, 1, size - size_of(runs)), random.pick(states));
  }
  return runs;
}

std::string difference(const Runs& ours, const Runs& theirs) {
  const std::size_t common = std::min(ours.size(), theirs.size());
  std::size_t i = 0;
  while (i < common && ours[i] == theirs[i])
    ++i;
  if (i == ours.size() && i == theirs.size())
    return "";
  return fmt::format("extent {} is {}, expected {}", i, to_text(ours, i), to_text(theirs, i));
}

std::uint64_t seeds_from_environment(std::uint64_t by_default) {
  const char* text = std::getenv("NBDELTA_SEEDS");  // NOLINT(concurrency-mt-unsafe)
  if (text == nullptr || *text == '\0')
    return kSanitized ? div_round_up(by_default, 4) : by_default;
  return std::strtoull(text, nullptr, 0);
}

}  // namespace nbdelta::testing
