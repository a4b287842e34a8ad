#include "image/view.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <span>
#include <string>

#include "base/arithmetic.hpp"
#include "base/big_endian.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "image/disk.hpp"
#include "image/qcow2_layer.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace {
std::atomic<unsigned> seeks = 0;
}  // namespace

/// In the place of libc's.
extern "C" off_t lseek(int fd, off_t offset, int whence) noexcept {
  ++seeks;
  return ::syscall(SYS_lseek, fd, offset, whence);
}

namespace nbdelta::testing {
namespace {

using image::State;

/// Every other block has changed; a MiB in the middle and one at the end are data, the rest holes.
TEST(View, RawImageIsAskedOnceForManyChanges) {
  constexpr std::uint64_t kBlock = 4 * kKiB;
  constexpr std::uint64_t kSize = 64 * kMiB;
  const TempFolder folder;
  create_image(folder / "disk.raw", "raw", kSize);
  qemu_io(folder / "disk.raw", "raw", {"write -q -P 1 16M 1M", "write -q -P 1 63M 1M"});
  image::OpenOptions options;
  options.format = image::Format::raw;
  const image::Disk disk = image::Disk::open(folder / "disk.raw", options);
  image::ExtentMap changes;
  for (std::uint64_t offset = 0; offset < kSize; offset += kBlock)
    changes.append(kBlock, offset / kBlock % 2 == 0 ? State::unchanged : State::data);
  const auto expected = [](std::uint64_t offset) {
    if (offset / kBlock % 2 == 0)
      return State::unchanged;
    const std::uint64_t mib = offset / kMiB;
    return mib == 16 || mib == 63 ? State::data : State::zero;
  };

  const unsigned before = seeks;
  std::uint64_t position = 0;
  image::View::dirty(disk, changes).for_each_extent(0, kSize, [&](const image::Extent& extent) {
    EXPECT_EQ(extent.offset, position);
    for (; position < extent.end(); position += kBlock)
      EXPECT_EQ(extent.state, expected(position)) << position;
    return true;
  });
  EXPECT_EQ(position, kSize);
  EXPECT_GT(seeks - before, 0U) << "lseek is not counted";
  EXPECT_LE(seeks - before, 8U);
}

/// One cluster of the bitmap stands for 32 GiB; the place of its second one is damaged.
TEST(View, DamageConcernsOnlyWhoGetsThere) {
  const TempFolder folder;
  create_image(folder / "disk", "qcow2", 64 * kGiB);
  qemu_img({"bitmap", "--add", folder / "disk", "b0"});
  qemu_io(folder / "disk", "qcow2",
          {"write 1G 64k", "write 2G 64k", "write 3G 64k", "write 40G 64k"});
  const image::Disk disk = image::Disk::open(folder / "disk", {});
  const image::DirtyBitmap bitmap = disk.qcow2()->bitmap("b0");
  const be64 nowhere = 1ULL << 60;
  File::open(folder / "disk", O_RDWR)
      .write_at(std::as_bytes(std::span(&nowhere, 1)), bitmap.info().table_offset + sizeof nowhere);
  const image::View view = image::View::dirty(disk, bitmap);

  unsigned changed = 0;
  const auto count_up_to = [&](unsigned most) {
    changed = 0;
    view.for_each_extent(0, disk.size(), [&](const image::Extent& extent) {
      changed += extent.state == State::unchanged ? 0 : 1;
      return changed < most;
    });
  };
  for (unsigned most = 1; most <= 3; ++most) {
    EXPECT_NO_THROW(count_up_to(most));
    EXPECT_EQ(changed, most);
  }
  EXPECT_THROW(count_up_to(4), Error);
  EXPECT_EQ(changed, 3U);
}

}  // namespace
}  // namespace nbdelta::testing
