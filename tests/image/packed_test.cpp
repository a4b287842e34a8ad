#include "image/packed.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/big_endian.hpp"
#include "base/error.hpp"
#include "tests/image/runs.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using image::ExtentMap;
using image::Packed;
using image::PackedLayout;

std::vector<std::byte> read(const Packed& packed, std::uint64_t offset, std::uint64_t length) {
  std::vector<std::byte> bytes(length, std::byte{0xee});
  packed.read(bytes, offset);
  return bytes;
}

/// A raw disk of random bytes with holes, and a map of what has changed.
class PackedExport : public ::testing::Test {
 protected:
  void make(std::uint64_t size) {
    std::vector<std::byte> bytes(size);
    random_.fill(bytes);
    const TempFolder folder;
    write_file(folder / "disk.raw", bytes);
    for (int i = 0; i < 3; ++i) {  // becomes a hole, where the file system has blocks of 4 KiB
      const std::uint64_t from = round_down(random_.below(size), 4096);
      qemu_io(
          folder / "disk.raw", "raw",
          {fmt::format("discard -q {} {}", from, std::min<std::uint64_t>(size - from, 16'384))});
    }
    image::OpenOptions options;
    options.format = image::Format::raw;
    disk_.emplace(image::Disk::open(folder / "disk.raw", options));  // stays open
    contents_.resize(disk_->size());
    disk_->read(contents_, 0);
    changes_ = map_of(random_runs(random_, disk_->size(), 512, random_.between(600, 60'000),
                                  {State::data, State::unchanged}));
  }

  Random random_ = Random::from_environment();
  std::optional<image::Disk> disk_;
  std::vector<std::byte> contents_;
  ExtentMap changes_;
};

TEST_F(PackedExport, IsTheMapAndThenTheData) {
  for (std::uint64_t round = seeds_from_environment(20); round > 0; --round) {
    make(random_.between(1, 3000) * 512);
    const auto view = image::View::dirty(*disk_, changes_);
    const Packed packed(view, [] {});
    const PackedLayout& layout = packed.layout();
    const std::vector<std::byte> all = read(packed, 0, layout.size());

    const PackedLayout parsed = PackedLayout::parse(all, all.size());
    EXPECT_EQ(parsed.disk_size, disk_->size());
    ASSERT_EQ(parsed.data(), layout.data());
    ExtentMap map;
    for (std::uint64_t at = PackedLayout::kMap; at < layout.data(); at += ExtentMap::kBlockBytes)
      map.append_encoded(
          std::span<const std::byte>(all).subspan(at).first<ExtentMap::kBlockBytes>());
    EXPECT_EQ(difference(runs_of(map), walk(view)), "");

    std::vector<std::byte> data;
    for (const Extent& run : walk(view))
      if (run.state == State::data)
        data.insert(data.end(), contents_.begin() + static_cast<std::ptrdiff_t>(run.offset),
                    contents_.begin() + static_cast<std::ptrdiff_t>(run.end()));
    ASSERT_EQ(data.size(), layout.data_size);
    EXPECT_TRUE(std::equal(data.begin(), data.end(),
                           all.begin() + static_cast<std::ptrdiff_t>(layout.data())));

    for (int i = 0; i < 50; ++i) {
      const std::uint64_t offset = random_.below(all.size());
      const std::uint64_t length = random_.between(1, all.size() - offset) >> random_.below(12);
      const auto part = read(packed, offset, length);
      ASSERT_TRUE(
          std::equal(part.begin(), part.end(), all.begin() + static_cast<std::ptrdiff_t>(offset)))
          << length << " bytes at " << offset;
    }
  }
}

TEST_F(PackedExport, OfAViewWithoutChangesHasNoData) {
  make(64 * 1024);
  changes_ = map_of({{0, disk_->size(), State::unchanged}});
  const Packed packed(image::View::dirty(*disk_, changes_), [] {});
  EXPECT_EQ(packed.layout().data_size, 0U);
  const auto all = read(packed, 0, packed.layout().size());
  EXPECT_EQ(PackedLayout::parse(all, all.size()).disk_size, disk_->size());
}

TEST_F(PackedExport, IsGivenUpWhenItsMakerSaysSo) {
  make(1024 * 1024);
  int calls = 0;
  const auto give_up = [&] {
    ++calls;
    fail(ETIMEDOUT, "enough");
  };
  EXPECT_THROW(Packed(image::View::dirty(*disk_, changes_), give_up), Error);
  EXPECT_GT(calls, 0);
}

TEST_F(PackedExport, HeadersThatContradictThemselvesAreRefused) {
  make(64 * 1024);
  const Packed packed(image::View::dirty(*disk_, changes_), [] {});
  const std::uint64_t size = packed.layout().size();
  const auto header = read(packed, 0, PackedLayout::kHeader);
  EXPECT_NO_THROW(PackedLayout::parse(header, size));
  EXPECT_THROW(PackedLayout::parse(header, size + 1), Error);
  EXPECT_THROW(PackedLayout::parse(header, PackedLayout::kHeader), Error);
  const auto expect_refused = [&](std::size_t at, std::uint64_t value) {
    auto changed = header;
    const be64 number = value;
    std::memcpy(changed.data() + at, &number, sizeof number);
    EXPECT_THROW(PackedLayout::parse(changed, size), Error) << value << " at " << at;
  };
  for (const std::uint64_t value : {std::uint64_t{0}, size, UINT64_MAX, UINT64_MAX - 4095}) {
    expect_refused(0, value);   // the magic
    expect_refused(8, value);   // the version
    expect_refused(24, value);  // the map's size
    expect_refused(32, value == 0 ? 1 : value);
  }
}

}  // namespace
}  // namespace nbdelta::testing
