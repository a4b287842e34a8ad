#include "image/dirty_bitmap.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/arithmetic.hpp"
#include "image/qcow2_format.hpp"
#include "image/qcow2_layer.hpp"
#include "image/view.hpp"
#include "tests/image/runs.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using image::Disk;
using image::View;

Runs by_qemu(const std::string& path, const std::string& bitmap) {
  const NbdServer server = NbdServer::qemu_nbd({"-r", "-f", "qcow2", "-B", bitmap, path});
  Runs runs;
  for (const NbdExtent& extent : nbdinfo_map(server.uri(), "qemu:dirty-bitmap:" + bitmap))
    append(runs, extent.length, extent.type == 0 ? State::unchanged : State::data);
  return runs;
}

/// QEMU reads entries that say "all ones", yet never writes one.
TEST(DirtyBitmap, AllOnesNeedNoCluster) {
  const TempFolder folder;
  const std::string path = folder / "image";
  create_image(path, "qcow2", 9 * kMiB, "cluster_size=512");
  // A cluster of the bitmap stands for 2 MiB: five entries, the last one cut by the disk's end.
  qemu_img({"bitmap", "--add", "-g", "512", path, "b"});
  qemu_io(path, "qcow2", {"write -P 1 2M 6M", "write -P 1 3M 512"});
  const auto table = Disk::open(path, {}).qcow2()->bitmaps().at(0).table_offset;
  for (const std::uint64_t entry : {std::uint64_t{0}, std::uint64_t{2}, std::uint64_t{4}})
    write_number(path, table + entry * sizeof(be64), image::qcow2::kBitmapAllOnes);

  const Disk disk = Disk::open(path, {});
  const image::DirtyBitmap bitmap = disk.qcow2()->bitmap("b");
  Runs changed;
  for (const Extent& run : walk(View::dirty(disk, bitmap)))
    append(changed, run.length, run.state == State::unchanged ? State::unchanged : State::data);
  EXPECT_EQ(difference(changed, by_qemu(path, "b")), "");
  EXPECT_EQ(difference(changed, {{0, 9 * kMiB, State::data}}), "");
  // All of it written or said to be: what was never written reads zero, and is changed all the
  // same.
  EXPECT_EQ(difference(walk(View::dirty(disk, bitmap), 0, 2 * kMiB), {{0, 2 * kMiB, State::zero}}),
            "");
}

/// No word and nothing that is read at a time is one bitmap's alone.
TEST(DirtyBitmap, ManySmallOnesAreToldApart) {
  const TempFolder folder;
  const std::string path = folder / "image";
  create_image(path, "qcow2", kMiB, "cluster_size=512");
  for (int i = 0; i < 8; ++i) {
    qemu_img({"bitmap", "--add", "-g", fmt::format("{}", 512 << i), path, fmt::format("b{}", i)});
    qemu_io(path, "qcow2", {fmt::format("write -P 1 {} 512", i * 100 * 1024)});
    qemu_img({"bitmap", "--disable", path, fmt::format("b{}", i)});
  }
  const Disk disk = Disk::open(path, {});
  for (std::uint64_t i = 0; i < 8; ++i) {
    const std::uint64_t granularity = std::uint64_t{512} << i;
    const std::uint64_t start = round_down(i * 100 * kKiB, granularity);
    Runs expected;
    append(expected, start, State::unchanged);
    append(expected, granularity, State::data);
    append(expected, kMiB - start - granularity, State::unchanged);
    Runs bits;
    disk.qcow2()->bitmap(fmt::format("b{}", i)).for_each_extent(0, kMiB, [&](const Extent& extent) {
      append(bits, extent.length, extent.state);
      return true;
    });
    EXPECT_EQ(difference(bits, expected), "") << i;
  }
}

}  // namespace
}  // namespace nbdelta::testing
