#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image/extent_map.hpp"
#include "image/view.hpp"
#include "tests/support/random.hpp"

namespace nbdelta::testing {

using image::Extent;
using image::State;

/// The naive model of a disk's states: extents from offset 0 on without gaps, neighbours of one
/// state joined.
using Runs = std::vector<Extent>;

/// Adds at the end, joining; the extent's own offset is ignored.
void append(Runs& runs, std::uint64_t length, State state);

std::uint64_t size_of(const Runs& runs);

/// At a byte below size_of(runs).
State state_at(const Runs& runs, std::uint64_t offset);

/// The part in [offset, offset + length), offsets kept.
Runs window(const Runs& runs, std::uint64_t offset, std::uint64_t length);

/// What a view says of a window; fails the test where its extents are empty, out of order or
/// outside the window.
Runs walk(const image::View& view, std::uint64_t offset, std::uint64_t length);
Runs walk(const image::View& view);

Runs runs_of(const image::ExtentMap& map);
image::ExtentMap map_of(const Runs& runs);

/// Draws states out of `states` for `size` bytes, in runs of 1 byte to `longest`, most of them
/// multiples of `unit`.
Runs random_runs(Random& random, std::uint64_t size, std::uint64_t unit, std::uint64_t longest,
                 const std::vector<State>& states);

/// Where two descriptions of one range first differ, for messages; "" where they do not.
std::string difference(const Runs& ours, const Runs& theirs);

/// $NBDELTA_SEEDS where that is set, otherwise `by_default`, or a quarter of it with a sanitizer.
std::uint64_t seeds_from_environment(std::uint64_t by_default);

}  // namespace nbdelta::testing
