// The caches' bound, seen from outside: the memory of this process.

#include <malloc.h>
#include <sys/mman.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/file.hpp"
#include "base/units.hpp"
#include "image/block_cache.hpp"
#include "image/disk.hpp"
#include "image/qcow2_format.hpp"
#include "image/view.hpp"
#include "tests/image/runs.hpp"
#include "tests/support/random.hpp"
#include "tests/support/sanitizer.hpp"

namespace nbdelta::testing {
namespace {

std::uint64_t resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmRSS:"))
      return std::stoull(line.substr(6)) * kKiB;
  return 0;
}

constexpr std::uint64_t kDisk = 16 * kTiB;
constexpr std::uint64_t kCluster = 64 * kKiB;
constexpr std::uint64_t kL2Tables = kDisk / (512 * kMiB);
constexpr int kThreads = 16;  // nbdkit's default for a connection

TEST(Memory, CacheStaysWithinItsCapacityWhateverThreadsFillIt) {
  constexpr std::size_t kCapacity = 24 * kMiB;
  constexpr std::size_t kBlock = 16 * kKiB;
  image::BlockCache cache(kCapacity, kBlock);
  ::malloc_trim(0);  // what earlier tests left would be used again
  const std::uint64_t before = resident_bytes();
  {
    std::vector<std::jthread> threads;
    for (std::uint64_t i = 0; i < kThreads; ++i)
      threads.emplace_back([&cache, i] {
        Random random(i);
        for (int n = 0; n < 6'000; ++n)
          cache.get({0, random.below(1'000'000)}, [](std::span<std::byte> fresh) {
            std::ranges::fill(fresh, std::byte{1});
            return fresh.size();
          });
      });
  }
  const std::uint64_t grown = resident_bytes() - before;
  fmt::print("a cache of {}, filled by {} threads: {} more memory\n", format_size(kCapacity),
             kThreads, format_size(grown));
  EXPECT_TRUE(grown < kCapacity + 4 * kMiB || kSanitized);
}

/// Adjacent L2 tables, each with one data cluster and one zero cluster, in a file in memory where
/// a hole takes nothing; no refcounts, which only a writer needs.
File make_16_tib_image() {
  using namespace image::qcow2;
  File file(FileDescriptor(::memfd_create("image", MFD_CLOEXEC)), "image");
  std::vector<be64> l1;
  const std::uint64_t first_l2 = kCluster + round_up(kL2Tables * sizeof(be64), kCluster);
  const std::uint64_t first_data = first_l2 + kL2Tables * kCluster;
  file.resize(first_data + kL2Tables * kCluster);
  Random random(1);
  for (std::uint64_t i = 0; i < kL2Tables; ++i) {
    const std::uint64_t table = first_l2 + i * kCluster;
    l1.push_back(table | kCopied);
    const std::array<be64, 2> entries{(first_data + i * kCluster) | kCopied, kZeroFlag};
    file.write_at(std::as_bytes(std::span(entries)),
                  table + random.between(1, 8000) * sizeof(be64));
  }
  file.write_at(std::as_bytes(std::span(l1)), kCluster);
  Header header{};
  header.magic = kMagic;
  header.version = 3;
  header.cluster_bits = 16;
  header.size = kDisk;
  header.l1_size = static_cast<std::uint32_t>(kL2Tables);
  header.l1_table_offset = kCluster;
  header.refcount_order = 4;
  header.header_length = kVersion3HeaderLength;
  file.write_at(std::as_bytes(std::span(&header, 1)), 0);
  return file;
}

TEST(Memory, A16TiBImageWithAllItsTablesServesIn64MiB) {
  const File file = make_16_tib_image();
  ::malloc_trim(0);  // what earlier tests left would be used again
  const std::uint64_t before = resident_bytes();
  const image::Disk disk = image::Disk::open(fmt::format("/proc/self/fd/{}", file.fd()), {});
  const Runs runs = walk(image::View::layer(disk));
  EXPECT_EQ(runs.size(), kL2Tables * 3 + 1);
  {
    std::vector<std::jthread> threads;
    for (std::uint64_t i = 0; i < kThreads; ++i)
      threads.emplace_back([&disk, i] {
        Random random(i);
        std::vector<std::byte> piece(4096);
        for (int n = 0; n < 100'000 / kThreads; ++n)
          disk.read(piece, random.below(kDisk - piece.size()));
      });
  }
  const std::uint64_t grown = resident_bytes() - before;
  fmt::print("16 TiB with {} L2 tables, walked and read 100,000 times: {} more memory\n", kL2Tables,
             format_size(grown));
  EXPECT_TRUE(grown < 64 * kMiB || kSanitized);
}

}  // namespace
}  // namespace nbdelta::testing
