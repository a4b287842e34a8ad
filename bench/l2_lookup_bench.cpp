// How long one look-up of a guest offset takes, by the number of L2 tables that are looked into:
// with few of them the metadata cache holds all, with many it does not.

#include <benchmark/benchmark.h>

#include <random>

#include "base/arithmetic.hpp"
#include "bench/synthetic_image.hpp"
#include "image/disk.hpp"

namespace nbdelta::bench {
namespace {

void l2_lookup(benchmark::State& state) {
  const auto disk_size = static_cast<std::uint64_t>(state.range(0)) * kGiB;
  const image::ExtentMap map = striped_map(disk_size, 64 * kKiB, 16);
  const SyntheticImage file(map);
  const image::Disk disk = image::Disk::open(file.path(), {});
  std::mt19937_64 random(1);
  for (auto _ : state) {
    const std::uint64_t cluster = random() % (disk_size / (64 * kKiB));
    const image::Run run = disk.layer(0).run_at(cluster * 64 * kKiB, 64 * kKiB);
    const bool allocated = run.allocation == image::Allocation::data;
    if (allocated != (cluster % 16 == 0))
      state.SkipWithError("a look-up was wrong");
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(l2_lookup)->ArgName("disk_GiB")->Arg(16)->Arg(1024);

}  // namespace
}  // namespace nbdelta::bench
