// From a map of changed extents to reads.

#include <benchmark/benchmark.h>

#include "base/arithmetic.hpp"
#include "bench/synthetic_image.hpp"
#include "client/pull/plan.hpp"

namespace nbdelta::bench {
namespace {

void plan(benchmark::State& state) {
  constexpr std::uint64_t disk = kTiB;
  const auto stride = static_cast<std::uint64_t>(state.range(0));
  const image::ExtentMap map = striped_map(disk, 64 * kKiB, stride);
  const client::pull::Limits limits{.request_size = 256 * kKiB, .zero_size = kGiB};
  std::uint64_t planned = 0;
  for (auto _ : state) {
    planned = 0;
    client::pull::Plan plan(map, limits);
    while (const auto operation = plan.next())
      planned += operation->length;
  }
  if (planned != map.bytes(image::State::data))
    state.SkipWithError("the plan is wrong");
  state.SetItemsProcessed(static_cast<std::int64_t>(map.extents(image::State::data)) *
                          state.iterations());
  state.counters["map_bytes_per_extent"] =
      static_cast<double>(map.memory()) / static_cast<double>(map.extents(image::State::data));
}
BENCHMARK(plan)->ArgName("stride")->Arg(4)->Arg(27)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace nbdelta::bench
