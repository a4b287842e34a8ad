#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <chrono>
#include <filesystem>
#include <span>
#include <string>
#include <thread>

#include "base/arithmetic.hpp"
#include "base/big_endian.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "image/disk.hpp"
#include "image/qcow2_format.hpp"
#include "image/qcow2_layer.hpp"
#include "image/view.hpp"
#include "tests/support/process.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using image::Allocation;
using image::Disk;

/// Whether the kernel has the page at `offset` in memory, or has it soon.
bool comes_into_memory(const File& file, std::uint64_t offset) {
  constexpr std::size_t kPage = 4096;
  void* const page = ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, file.fd(),
                            static_cast<off_t>(round_down(offset, kPage)));
  invariant(page != MAP_FAILED, "a page of an image can be mapped");
  unsigned char resident = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while ((resident & 1U) == 0 && std::chrono::steady_clock::now() < deadline) {
    ::mincore(page, kPage, &resident);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ::munmap(page, kPage);
  return (resident & 1U) != 0;
}

/// Out of the page cache, where the file system has one.
File forgotten(const std::string& path) {
  File file = File::open(path, O_RDWR);
  file.sync();
  ::posix_fadvise(file.fd(), 0, 0, POSIX_FADV_DONTNEED);
  return file;
}

/// The overlay holds less than its backing file, which ends before the overlay does.
TEST(WillNeed, AnnouncesEveryLayersOwnPart) {
  const TempFolder folder;
  create_image(folder / "backing", "raw", 8 * kMiB);
  qemu_io(folder / "backing", "raw", {"write -P 1 0 8M"});
  create_overlay(folder / "overlay", "backing", "raw", 32 * kMiB);
  qemu_io(folder / "overlay", "qcow2", {"write -P 2 4M 1M", "write -P 3 24M 1M"});
  const Disk disk = Disk::open(folder / "overlay", {.permitted_folders = {folder.path()}});
  const File overlay = forgotten(folder / "overlay");
  const File backing = forgotten(folder / "backing");

  Disk::Walk walk = disk.new_walk();
  disk.will_need(0, disk.size(), walk);
  for (const std::uint64_t offset : {4 * kMiB, 24 * kMiB}) {
    const image::Run run = disk.layer(0).run_at(offset, kMiB);
    ASSERT_EQ(run.allocation, Allocation::data);
    EXPECT_TRUE(comes_into_memory(overlay, image::raw(run.host_offset))) << offset;
  }
  EXPECT_TRUE(comes_into_memory(backing, 0));
  EXPECT_TRUE(comes_into_memory(backing, 6 * kMiB));
}

/// On a device that takes little at a time.
TEST(WillNeed, AnnouncesAllOfALongRange) {
  const TempFolder folder;
  run_ok({"truncate", "--size=64M", folder / "device"});
  run_ok({"mkfs.ext4", "-q", folder / "device"});
  std::filesystem::create_directory(folder / "mounted");
  if (run({"mount", "-o", "loop", folder / "device", folder / "mounted"}).status != 0)
    GTEST_SKIP() << "no loop device can be mounted here";
  {
    create_image(folder / "mounted/disk", "raw", 16 * kMiB);
    qemu_io(folder / "mounted/disk", "raw", {"write -P 1 0 16M"});
    const Disk disk = Disk::open(folder / "mounted/disk",
                                 {.format = image::Format::raw, .permitted_folders = {}});
    const File file = forgotten(folder / "mounted/disk");
    Disk::Walk walk = disk.new_walk();
    disk.will_need(0, disk.size(), walk);
    EXPECT_TRUE(comes_into_memory(file, 0));
    EXPECT_TRUE(comes_into_memory(file, 15 * kMiB));
  }
  run_ok({"umount", folder / "mounted"});
}

/// Each has an L2 table of its own. Nobody goes on after the second.
TEST(WillNeed, AnnouncesTheTableEntriesOfWhatHasChanged) {
  constexpr std::uint64_t kApart = kTiB / 16;
  constexpr std::uint64_t kChanges = 16;
  const TempFolder folder;
  create_image(folder / "disk", "qcow2", kTiB);
  Command writes;
  image::ExtentMap changes;
  for (std::uint64_t i = 0; i < kChanges; ++i) {
    writes.push_back("write -P 1 " + std::to_string(i * kApart) + " 64k");
    changes.append(64 * kKiB, image::State::data);
    changes.append(kApart - 64 * kKiB, image::State::unchanged);
  }
  qemu_io(folder / "disk", "qcow2", writes);
  const Disk disk = Disk::open(folder / "disk", {});
  const File file = forgotten(folder / "disk");

  image::View::dirty(disk, changes)
      .for_each_extent(0, disk.size(),
                       [](const image::Extent& extent) { return extent.offset < kApart; });
  const image::Qcow2Header& header = disk.qcow2()->header();
  for (std::uint64_t i = 2; i < kChanges; ++i) {
    be64 l1_entry;
    const std::uint64_t index = i * kApart / (header.l2_entries() * header.cluster_size());
    file.read_exactly_at(std::as_writable_bytes(std::span(&l1_entry, 1)),
                         header.l1_offset + index * sizeof l1_entry);
    EXPECT_TRUE(comes_into_memory(file, l1_entry & image::qcow2::kOffsetMask)) << i;
  }
}

}  // namespace
}  // namespace nbdelta::testing
