#include "image/qcow2_overlay.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <stop_token>
#include <thread>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "base/units.hpp"
#include "image/view.hpp"
#include "tests/image/runs.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using image::Backing;
using image::Disk;
using image::ExtentMap;
using image::Format;
using image::Qcow2Overlay;
using image::View;
using Bytes = std::vector<std::byte>;

constexpr State kData = State::data;
constexpr State kUnchanged = State::unchanged;
constexpr State kZero = State::zero;
constexpr State kHole = State::hole;

File create(const std::string& path) {
  return File::open(path, O_RDWR | O_CREAT | O_TRUNC);
}

std::uint64_t used_bytes(const File& file) {
  return static_cast<std::uint64_t>(file.status().st_blocks) * 512;
}

Bytes contents_by_qemu(const std::string& path, const TempFolder& folder) {
  const std::string converted = folder / "converted";
  qemu_img({"convert", "-f", "qcow2", "-O", "raw", path, converted});
  const File file = File::open(converted, O_RDONLY);
  Bytes contents(file.size());
  file.read_exactly_at(contents, 0);
  return contents;
}

bool is_qcow2(const std::string& path) {
  return run({"qemu-img", "info", "-f", "qcow2", path}).ok();
}

/// Writes a whole disk in pieces of random lengths, in a random order, from two threads.
void write_in_pieces(const Qcow2Overlay& overlay, const Bytes& disk, Random& random) {
  std::vector<std::span<const std::byte>> pieces;
  for (std::size_t at = 0; at < disk.size(); at += pieces.back().size())
    pieces.push_back(std::span(disk).subspan(
        at, std::min<std::size_t>(disk.size() - at, random.between(1, kMiB) >> random.below(9))));
  for (std::size_t i = pieces.size(); i > 1; --i)
    std::swap(pieces[i - 1], pieces[random.below(i)]);
  std::atomic<std::size_t> next{0};
  const auto write_some = [&] {
    for (std::size_t i = next++; i < pieces.size(); i = next++)
      overlay.write(pieces[i], static_cast<std::uint64_t>(pieces[i].data() - disk.data()));
  };
  const std::jthread second(write_some);
  write_some();
}

/// A backing file of its own format and size, and its contents, cut or filled with zeros to `size`.
Bytes make_backing(const std::string& path, const Backing& backing, std::uint64_t size,
                   Random& random) {
  const std::uint64_t own_size = round_up(random.between(1, 2 * size), 512);
  Bytes contents(own_size);
  for (std::uint64_t at = 0; at < own_size;) {
    const std::uint64_t end = std::min(own_size, at + random.between(1, 256 * kKiB));
    if (random.chance(70))
      random.fill(std::span(contents).subspan(at, end - at));
    at = end;
  }
  const std::string raw = path + ".raw";
  create(raw).write_at(contents, 0);
  qemu_img(
      {"convert", "-f", "raw", "-O", backing.format == Format::raw ? "raw" : "qcow2", raw, path});
  contents.resize(size);
  return contents;
}

/// What the disk holds, where the backing file has the previous backup.
Bytes new_contents(const Runs& changes, Bytes previous, Random& random) {
  for (const Extent& run : changes) {
    const auto part = std::span(previous).subspan(run.offset, run.length);
    if (run.state == kData)
      random.fill(part);
    else if (run.state != kUnchanged)
      std::fill(part.begin(), part.end(), std::byte{0});
  }
  return previous;
}

TEST(Qcow2Overlay, IsWhatQemuExpectsOfIt) {
  Random random = Random::from_environment();
  for (std::uint64_t round = seeds_from_environment(40); round > 0; --round) {
    const TempFolder folder;
    const std::uint64_t cluster = random.chance(50) ? 4 * kKiB : 64 * kKiB;
    const std::uint64_t size = random.between(1, 6 * kMiB) >> random.below(4);
    const bool has_backing = random.chance(80);
    const Backing backing{has_backing ? "previous" : "",
                          random.chance(50) ? Format::raw : Format::qcow2};
    const std::uint64_t unit = random.chance(50) ? cluster : 512;
    const Runs changes = random_runs(
        random, size, unit, 2 * kMiB,
        has_backing ? std::vector{kData, kZero, kUnchanged} : std::vector{kData, kZero, kHole});
    SCOPED_TRACE(fmt::format("clusters of {}, size {}, backing '{}'", cluster, size, backing.name));
    Bytes disk(size);
    if (has_backing)
      disk = make_backing(folder / backing.name, backing, size, random);
    disk = new_contents(changes, std::move(disk), random);

    const std::string path = folder / "overlay";
    const ExtentMap map = image::widen_to_clusters(map_of(changes), cluster);
    {
      const File file = create(path);
      file.write_at(std::as_bytes(std::span("what was there before")), 0);
      const Qcow2Overlay overlay(file, map, cluster, backing);
      EXPECT_FALSE(is_qcow2(path)) << "before it is written";
      write_in_pieces(overlay, disk, random);
      EXPECT_FALSE(is_qcow2(path)) << "before finish()";
      overlay.write_tables();
      overlay.finish();
      EXPECT_EQ(file.size(), Qcow2Overlay::file_size(map, cluster));
    }
    EXPECT_EQ(check_complaints(path), "");

    const auto info = image_info(path, "qcow2").as_object();
    EXPECT_EQ(info.at("virtual-size").as_int64(), round_up(size, 512));
    EXPECT_EQ(info.at("cluster-size").as_int64(), cluster);
    ASSERT_EQ(info.contains("backing-filename"), has_backing);
    if (has_backing) {
      EXPECT_EQ(info.at("backing-filename").as_string(), backing.name);
      EXPECT_EQ(info.at("backing-filename-format").as_string(),
                backing.format == Format::raw ? "raw" : "qcow2");
    }

    Bytes contents = contents_by_qemu(path, folder);
    contents.resize(size);
    const auto [ours, theirs] = std::mismatch(contents.begin(), contents.end(), disk.begin());
    EXPECT_TRUE(ours == contents.end()) << "differs at " << ours - contents.begin();

    // Our own reader finds in it what was asked for.
    const Disk reopened = Disk::open(path, {.permitted_folders = {folder.path()}});
    Runs expected;
    for (const Extent& run : runs_of(map))
      append(expected, run.length, run.state == kHole ? kUnchanged : run.state);
    EXPECT_EQ(difference(walk(View::layer(reopened), 0, size), expected), "");
    Bytes read(size);
    reopened.read(read, 0);
    EXPECT_TRUE(read == disk);
  }
}

TEST(Qcow2Overlay, RoundsAnOddSizeUpAndFillsWithZeros) {
  const TempFolder folder;
  const std::string path = folder / "overlay";
  const ExtentMap map = map_of({{0, 65536 + 1000, kData}});
  const File file = create(path);
  const Qcow2Overlay overlay(file, map, 65536, {});
  overlay.write(Bytes(65536 + 1000, std::byte{7}), 0);
  overlay.write_tables();
  overlay.finish();
  const Bytes contents = contents_by_qemu(path, folder);
  Bytes expected(65536 + 1000, std::byte{7});
  expected.resize(65536 + 1024);
  EXPECT_TRUE(contents == expected);
  EXPECT_EQ(check_complaints(path), "");
}

TEST(Qcow2Overlay, WithoutChangesIsJustItsTables) {
  for (const std::uint64_t size : {std::uint64_t{512}, 100 * kGiB}) {
    const TempFolder folder;
    const File file = create(folder / "overlay");
    const ExtentMap map = map_of({{0, size, kUnchanged}});
    const Qcow2Overlay overlay(file, map, 65536, {});
    overlay.write_tables();
    overlay.finish();
    EXPECT_EQ(check_complaints(folder / "overlay"), "");
    EXPECT_EQ(file.size(), 4 * 65536U);
  }
}

TEST(Qcow2Overlay, FewExtentsOfA16TiBDiskMakeASmallFileFast) {
  const TempFolder folder;
  const std::string path = folder / "overlay";
  ExtentMap map;
  for (int i = 0; i < 100; ++i) {
    map.append(160 * kGiB, kUnchanged);
    map.append(64 * kKiB, kData);
    map.append(3 * kGiB, kZero);
  }
  map.append(16 * kTiB - map.size(), kUnchanged);
  const std::uint64_t cluster = Qcow2Overlay::suitable_cluster_size(map);
  EXPECT_EQ(cluster, 64 * kKiB);

  const auto start = std::chrono::steady_clock::now();
  const File file = create(path);
  const Qcow2Overlay overlay(file, map, cluster, {});
  for (auto cursor = map.begin(); !cursor.at_end(); cursor.next())
    if (cursor.extent().state == kData)
      overlay.write(Bytes(cursor.extent().length, std::byte{1}), cursor.extent().offset);
  overlay.write_tables();
  overlay.finish();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  fmt::print("16 TiB, 200 extents: {} (on disk {}) in {}\n", format_size(file.size()),
             format_size(used_bytes(file)), format_duration(took.count()));
  EXPECT_LT(took.count(), 5);
  EXPECT_LT(file.size(), 64 * kMiB);
  EXPECT_EQ(check_complaints(path), "");
  EXPECT_EQ(image_info(path, "qcow2").at("virtual-size").as_int64(), 16 * kTiB);
}

TEST(Qcow2Overlay, TablesAreNotWrittenOnceThatIsToStop) {
  const TempFolder folder;
  const ExtentMap map = map_of({{0, 64 * kGiB, kZero}});
  const File file = create(folder / "overlay");
  const Qcow2Overlay overlay(file, map, 65536, {});
  std::stop_source stop;
  stop.request_stop();
  try {
    overlay.write_tables(stop.get_token());
    ADD_FAILURE() << "went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), ECANCELED) << error.what();
  }
  EXPECT_LT(used_bytes(file), kMiB);
}

/// More clusters than one refcount block counts, and more blocks than one cluster of the refcount
/// table points to.
TEST(Qcow2Overlay, CountsManyClusters) {
  const TempFolder folder;
  const std::string path = folder / "overlay";
  const std::uint64_t clusters = (4096 / 8) * (4096 / 2) * 3 / 2;
  for (const std::uint64_t few : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{2047}}) {
    const ExtentMap map = map_of({{0, (clusters + few) * 4096, kData}});  // a sparse file of 6 GiB
    const File file = create(path);
    const Qcow2Overlay overlay(file, map, 4096, {});
    overlay.write_tables();
    overlay.finish();
    EXPECT_EQ(check_complaints(path), "");
  }
}

TEST(Qcow2Overlay, SuitableClusterSize) {
  struct Row {
    const char* name;
    Runs map;
    std::uint64_t cluster_size;
  };
  const std::vector<Row> rows{
      {"nothing", {}, 65536},
      {"all changed, fine bounds", {{0, 512, kData}, {512, 512, kZero}}, 65536},
      {"coarse bounds", {{0, 1 << 20, kData}, {1 << 20, 1 << 20, kUnchanged}}, 65536},
      {"16 KiB", {{0, 16384, kData}, {16384, 1 << 20, kUnchanged}}, 16384},
      {"never below 4 KiB", {{0, 512, kData}, {512, 1 << 20, kUnchanged}}, 4096},
      {"the disk's end does not count", {{0, 65536, kData}, {65536, 4096, kUnchanged}}, 65536},
      {"an L1 table within QEMU's limit",
       {{0, 4096, kData}, {4096, 32 * kTiB - 4096, kUnchanged}},
       8192},
      {"one cluster more", {{0, 4096, kData}, {4096, 32 * kTiB, kUnchanged}}, 16384},
  };
  for (const Row& row : rows)
    EXPECT_EQ(Qcow2Overlay::suitable_cluster_size(map_of(row.map)), row.cluster_size) << row.name;
}

TEST(Qcow2Overlay, RefusesWhatQcow2CannotHold) {
  const TempFolder folder;
  const File file = create(folder / "overlay");
  const ExtentMap small = map_of({{0, 4096, kData}});
  EXPECT_THROW(Qcow2Overlay(file, small, 4096, {std::string(1024, 'x'), Format::raw}), Error);
  EXPECT_NO_THROW(Qcow2Overlay(file, small, 4096, {std::string(1023, 'x'), Format::raw}));
  const ExtentMap huge = map_of({{0, 16 * kTiB, kUnchanged}});
  EXPECT_THROW(Qcow2Overlay(file, huge, 4096, {}), Error);
}

}  // namespace
}  // namespace nbdelta::testing
