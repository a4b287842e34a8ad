// From a persistent bitmap in the file to extents: the bitmap alone, and the changed view, which
// also looks up what reads zero.

#include <benchmark/benchmark.h>

#include "base/arithmetic.hpp"
#include "bench/synthetic_image.hpp"
#include "image/disk.hpp"
#include "image/qcow2_layer.hpp"
#include "image/view.hpp"

namespace nbdelta::bench {
namespace {

constexpr std::uint64_t kDisk = kTiB;

/// One changed block of 64 KiB in `stride`.
void check_and_count(benchmark::State& state, std::uint64_t changed, std::uint64_t stride) {
  const std::uint64_t expected = div_round_up(kDisk / (64 * kKiB), stride);
  if (changed != expected)
    state.SkipWithError("the extents are wrong");
  state.SetItemsProcessed(static_cast<std::int64_t>(expected) * state.iterations());
}

void bitmap_to_extents(benchmark::State& state) {
  const auto stride = static_cast<std::uint64_t>(state.range(0));
  const SyntheticImage file(striped_map(kDisk, 64 * kKiB, stride));
  const image::Disk disk = image::Disk::open(file.path(), {});
  const image::DirtyBitmap bitmap = disk.qcow2()->bitmap("b0");
  std::uint64_t changed = 0;
  for (auto _ : state) {
    changed = 0;
    bitmap.for_each_extent(0, kDisk, [&](const image::Extent& extent) {
      changed += extent.state == image::State::data ? 1U : 0U;
      return true;
    });
  }
  check_and_count(state, changed, stride);
}
BENCHMARK(bitmap_to_extents)->ArgName("stride")->Arg(4)->Arg(27)->Unit(benchmark::kMillisecond);

void changed_view(benchmark::State& state) {
  const auto stride = static_cast<std::uint64_t>(state.range(0));
  const SyntheticImage file(striped_map(kDisk, 64 * kKiB, stride));
  const image::Disk disk = image::Disk::open(file.path(), {});
  const image::DirtyBitmap bitmap = disk.qcow2()->bitmap("b0");
  const image::View view = image::View::dirty(disk, bitmap);
  std::uint64_t changed = 0;
  for (auto _ : state) {
    changed = 0;
    view.for_each_extent(0, kDisk, [&](const image::Extent& extent) {
      changed += extent.state == image::State::data ? 1U : 0U;
      return true;
    });
  }
  check_and_count(state, changed, stride);
}
BENCHMARK(changed_view)->ArgName("stride")->Arg(4)->Arg(27)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace nbdelta::bench
