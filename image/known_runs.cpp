#include "image/known_runs.hpp"

#include <algorithm>

namespace nbdelta::image {

KnownRuns::KnownRuns(std::span<const KnownRuns> parts) {
  std::size_t count = 0;
  for (const KnownRuns& part : parts)
    count += part.runs_.size();
  runs_.reserve(count);
  for (const KnownRuns& part : parts)
    runs_.insert(runs_.end(), part.runs_.begin(), part.runs_.end());
}

void KnownRuns::add(std::uint64_t offset, const Run& run) {
  if (runs_.size() < kMost)
    runs_.push_back({offset, run.length, run.host_offset});
}

Run KnownRuns::at(std::uint64_t offset, std::uint64_t limit, std::size_t& hint) const {
  const auto holds = [&](std::size_t i) {
    return i < runs_.size() && runs_[i].offset <= offset && offset < runs_[i].end();
  };
  if (!holds(hint) && !holds(++hint)) {
    const auto after = std::upper_bound(
        runs_.begin(), runs_.end(), offset,
        [](std::uint64_t wanted, const Known& known) { return wanted < known.offset; });
    hint = static_cast<std::size_t>(after - runs_.begin());
    if (hint == 0 || !holds(--hint))
      return {};
  }
  const Known& known = runs_[hint];
  const std::uint64_t skipped = offset - known.offset;
  return {.allocation = Allocation::data,
          .length = std::min(limit, known.length - skipped),
          .host_offset = HostOffset{raw(known.host_offset) + skipped}};
}

}  // namespace nbdelta::image
