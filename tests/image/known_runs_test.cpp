#include "image/known_runs.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "base/arithmetic.hpp"
#include "image/disk.hpp"
#include "image/packed.hpp"
#include "image/qcow2_layer.hpp"
#include "image/view.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/random.hpp"
#include "tests/support/temp_folder.hpp"

namespace {
std::atomic<unsigned> reads = 0;
}  // namespace

/// Before libc's, or a sanitizer's.
extern "C" ssize_t pread64(int fd, void* buffer, size_t count, off_t offset) {
  static const auto next = reinterpret_cast<decltype(&::pread64)>(::dlsym(RTLD_NEXT, "pread64"));
  ++reads;
  return next(fd, buffer, count, offset);
}

namespace nbdelta::testing {
namespace {

using image::Allocation;
using image::HostOffset;
using image::KnownRuns;

image::Run data(std::uint64_t length, std::uint64_t host_offset) {
  return {.allocation = Allocation::data, .length = length, .host_offset = HostOffset{host_offset}};
}

TEST(KnownRuns, AreFoundInAnyOrder) {
  Random random = Random::from_environment();
  KnownRuns known;
  constexpr std::uint64_t kSize = 20000;
  std::vector<std::uint64_t> host(kSize);  // of each byte; 0: not known
  std::vector<std::uint64_t> end(kSize);   // of the run that it is in
  for (std::uint64_t offset = random.below(3); offset < kSize;) {
    const std::uint64_t length = std::min(random.between(1, 50), kSize - offset);
    const std::uint64_t at = random.between(1, 1ULL << 50);
    known.add(offset, data(length, at));
    for (std::uint64_t i = 0; i < length; ++i) {
      host[offset + i] = at + i;
      end[offset + i] = offset + length;
    }
    offset += length + (random.chance(50) ? 0 : random.between(1, 50));
  }
  std::size_t hint = 0;
  std::uint64_t next = 0;
  for (int i = 0; i < 20000; ++i) {
    const std::uint64_t offset = random.chance(70) && next < kSize ? next : random.below(kSize);
    const std::uint64_t limit = random.between(1, 60);
    const image::Run run = known.at(offset, limit, hint);
    if (host[offset] == 0) {
      ASSERT_EQ(run.length, 0U) << offset;
      next = offset + random.between(1, 60);
      continue;
    }
    ASSERT_EQ(run.allocation, Allocation::data);
    ASSERT_EQ(image::raw(run.host_offset), host[offset]) << offset;
    ASSERT_EQ(run.length, std::min(limit, end[offset] - offset)) << offset;
    next = offset + run.length;
  }
}

TEST(KnownRuns, OfManyTheFirstAreKept) {
  KnownRuns many;
  for (std::uint64_t i = 0; i <= KnownRuns::kMost; ++i)
    many.add(i * 10, data(5, i + 1));
  KnownRuns few;
  few.add(2'000'000, data(5, 8));
  const KnownRuns all(std::vector{many, few});
  std::size_t hint = 0;
  for (const KnownRuns* known : {&std::as_const(many), &all}) {
    EXPECT_EQ(known->at(10, 5, hint).length, 5U);
    EXPECT_EQ(known->at((KnownRuns::kMost - 1) * 10, 5, hint).length, 5U);
    EXPECT_EQ(known->at(KnownRuns::kMost * 10, 5, hint).length, 0U);
  }
  EXPECT_EQ(all.at(2'000'000, 5, hint).length, 5U);
}

/// Blocks far apart, each with a table of its own.
TEST(KnownRuns, SpareReadersTheTables) {
  const TempFolder folder;
  constexpr std::uint64_t kBlocks = 20;
  constexpr std::uint64_t kApart = 16 * kGiB;
  create_image(folder / "disk", "qcow2", kBlocks * kApart);
  qemu_img({"bitmap", "--add", folder / "disk", "b0"});
  std::vector<std::string> writes{"write -q -z 3G 64k"};
  for (std::uint64_t i = 0; i < kBlocks; ++i)
    writes.push_back(fmt::format("write -q -P {} {} 64k", i + 1, i * kApart));
  qemu_io(folder / "disk", "qcow2", writes);

  const image::Disk disk = image::Disk::open(folder / "disk", {});
  const image::DirtyBitmap bitmap = disk.qcow2()->bitmap("b0");
  KnownRuns known;
  const image::View view = image::View::dirty(disk, bitmap);
  const image::ExtentMap map = image::read_map(
      view, [] {}, &known);
  ASSERT_EQ(map.bytes(image::State::data), kBlocks * 64 * kKiB);

  const auto read_all = [&](const KnownRuns* with) {
    std::vector<std::byte> block(64 * kKiB);
    image::Disk::Walk walk = disk.new_walk(with);
    const unsigned before = reads;
    for (std::uint64_t i = 0; i < kBlocks; ++i) {
      disk.read(block, i * kApart, walk);
      EXPECT_EQ(block, std::vector(block.size(), static_cast<std::byte>(i + 1))) << i;
    }
    const unsigned taken = reads - before;
    disk.read(block, 3 * kGiB, walk);
    EXPECT_EQ(block, std::vector(block.size(), std::byte{0}));
    return taken;
  };
  EXPECT_GE(read_all(nullptr), 2 * kBlocks) << "pread is not counted";
  EXPECT_EQ(read_all(&known), kBlocks);

  const image::Packed packed(view, [] {});
  std::vector<std::byte> all(packed.layout().data_size);
  const unsigned before = reads;
  packed.read(all, packed.layout().data());
  EXPECT_EQ(reads - before, kBlocks);
}

}  // namespace
}  // namespace nbdelta::testing
