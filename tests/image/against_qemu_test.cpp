// Images drawn at random over every feature that is read, and what QEMU's own programs say of them.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <numeric>
#include <thread>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "image/disk.hpp"
#include "image/qcow2_layer.hpp"
#include "image/view.hpp"
#include "tests/image/coverage.hpp"
#include "tests/image/random_image.hpp"
#include "tests/image/runs.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/qemu.hpp"

namespace nbdelta::testing {
namespace {

using image::Caching;
using image::Disk;
using image::Format;
using image::OpenOptions;
using image::View;
using Bytes = std::vector<std::byte>;

std::string format_name(Format format) {
  return format == Format::raw ? "raw" : "qcow2";
}

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](std::byte byte) { return byte == std::byte{0}; });
}

bool knows_direct(const std::string& path) {
  return FileDescriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT)).get() >= 0;
}

/// The whole disk, read by several threads in pieces of random lengths and in a random order, each
/// second one on a walk.
Bytes read_in_pieces(const Disk& disk, Random& random, const image::KnownRuns* known = nullptr) {
  Bytes contents(disk.size(), std::byte{0xa5});
  std::vector<std::span<std::byte>> pieces;
  for (std::size_t at = 0; at < contents.size(); at += pieces.back().size())
    pieces.push_back(std::span(contents).subspan(
        at, std::min<std::size_t>(contents.size() - at,
                                  random.between(1, 3 * kMiB) >> random.below(10))));
  for (std::size_t i = pieces.size(); i > 1; --i)
    std::swap(pieces[i - 1], pieces[random.below(i)]);
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::string error;  // guarded by `mutex`
  const auto read_some = [&] {
    try {
      Disk::Walk walk = disk.new_walk(known);
      for (std::size_t i = next++; i < pieces.size(); i = next++) {
        const auto offset = static_cast<std::uint64_t>(pieces[i].data() - contents.data());
        if (i % 2 == 0)
          disk.read(pieces[i], offset);
        else
          disk.read(pieces[i], offset, walk);
      }
    } catch (const std::exception& problem) {
      const std::lock_guard lock(mutex);
      error = problem.what();
    }
  };
  {
    std::jthread second(read_some);
    std::jthread third(read_some);
    read_some();
  }
  EXPECT_EQ(error, "");
  return contents;
}

std::string difference(const Bytes& ours, const Bytes& theirs) {
  const auto [a, b] = std::mismatch(ours.begin(), ours.end(), theirs.begin(), theirs.end());
  if (a == ours.end() && b == theirs.end())
    return "";
  return fmt::format("differs from {:#x} on (sizes {:#x} and {:#x})", a - ours.begin(), ours.size(),
                     theirs.size());
}

/// One image, with what QEMU says of it.
class Comparison {
 public:
  Comparison(std::uint64_t seed, const RandomImage& image, const TempFolder& folder)
      : random_(seed ^ 0x5eed), image_(image), folder_(folder), disk_(open(Caching::page_cache)) {}

  void run() {
    compare_contents();
    compare_allocation();
    if (image_.format == Format::qcow2) {
      const NbdServer server = serve();
      compare_layer(server);
      compare_bitmaps(server);
    }
  }

 private:
  Disk open(Caching caching) const {
    return Disk::open(
        image_.path,
        {.format = image_.format, .permitted_folders = {folder_.path()}, .caching = caching});
  }

  /// Cuts off what QEMU adds: it rounds sizes up to 512 bytes.
  void compare_contents() {
    const std::string converted = folder_ / "converted";
    qemu_img({"convert", "-f", format_name(image_.format), "-O", "raw", image_.path, converted});
    const File file = File::open(converted, O_RDONLY);
    ASSERT_EQ(file.size(), round_up(disk_.size(), 512));
    contents_.resize(disk_.size());
    file.read_exactly_at(contents_, 0);
    EXPECT_EQ(difference(read_in_pieces(disk_, random_), contents_), "");
    if (knows_direct(image_.path)) {
      const Disk direct = open(Caching::direct);
      EXPECT_EQ(difference(read_in_pieces(direct, random_), contents_), "") << "direct=on";
    }
  }

  /// docs/extents.md, "image": data where QEMU says data; where no layer says anything, a hole.
  /// QEMU has no word for the hole in a raw file: it is present.
  void compare_allocation() {
    Runs theirs;
    for (const MapEntry& entry : qemu_map(image_.path, format_name(image_.format))) {
      const bool hole =
          !entry.present || (image_.layers.at(entry.depth) == Format::raw && entry.zero);
      const std::uint64_t left = disk_.size() - entry.start;  // QEMU rounds up
      append(theirs, std::min(entry.length, left),
             entry.data ? State::data
             : hole     ? State::hole
                        : State::zero);
      // QEMU takes what is past the end of a backing file for the overlay's own.
    }
    compare("image", View::image(disk_), theirs);
  }

  /// One server for all contexts.
  NbdServer serve() const {
    Command arguments{
        "--blockdev",
        fmt::format("driver=qcow2,node-name=n,read-only=on,file.driver=file,file.filename={}",
                    image_.path)};
    std::string bitmaps;
    for (std::size_t i = 0; i < image_.bitmaps.size(); ++i)
      bitmaps += fmt::format(",bitmaps.{}={}", i, image_.bitmaps[i].name);
    arguments.insert(
        arguments.end(),
        {"--export", "type=nbd,id=e,node-name=n,name=e,allocation-depth=on" + bitmaps});
    return NbdServer::storage_daemon(arguments);
  }

  void compare_layer(const NbdServer& server) {
    const View view = View::layer(disk_);
    const Runs ours = walk(view);
    Runs changed;
    for (const Extent& run : ours)
      append(changed, run.length, run.state == State::unchanged ? State::unchanged : State::data);
    Runs theirs;
    for (const NbdExtent& extent : nbdinfo_map(server.uri("e"), "qemu:allocation-depth"))
      append(theirs, extent.length, extent.type == 1 ? State::data : State::unchanged);
    EXPECT_EQ(testing::difference(changed, theirs), "") << "layer";
    zeros_read_zero(ours);
    windows_equal_the_whole(view, ours);
  }

  void compare_bitmaps(const NbdServer& server) {
    const auto infos = disk_.qcow2()->bitmaps();
    ASSERT_EQ(infos.size(), image_.bitmaps.size());
    for (std::size_t i = 0; i < infos.size(); ++i) {
      const auto& expected = image_.bitmaps[i];
      EXPECT_EQ(infos[i].name, expected.name);
      EXPECT_EQ(infos[i].granularity, expected.granularity);
      EXPECT_EQ(infos[i].enabled, expected.enabled);
      EXPECT_FALSE(infos[i].in_use);
      compare_bitmap(server, expected.name);
    }
  }

  /// Changed where the bit is set; zero there as the disk's allocation says, which was compared
  /// with QEMU's already.
  void compare_bitmap(const NbdServer& server, const std::string& name) {
    Runs theirs;
    for (const NbdExtent& extent : nbdinfo_map(server.uri("e"), "qemu:dirty-bitmap:" + name)) {
      if (extent.type == 0) {
        append(theirs, extent.length, State::unchanged);
        continue;
      }
      for (const Extent& run : window(image_runs_, extent.offset, extent.length))
        append(theirs, run.length, image::reads_zero(run.state) ? State::zero : State::data);
    }
    const image::DirtyBitmap bitmap = disk_.qcow2()->bitmap(name);
    const View view = View::dirty(disk_, bitmap);
    compare("dirty:" + name, view, theirs);
    image::KnownRuns found;
    image::read_map(
        view, [] {}, &found);
    EXPECT_EQ(difference(read_in_pieces(disk_, random_, &found), contents_), "") << "after its map";
  }

  void compare(const std::string& what, const View& view, const Runs& theirs) {
    const Runs ours = walk(view);
    if (!view.is_changed_view())
      image_runs_ = ours;
    EXPECT_EQ(testing::difference(ours, theirs), "") << what;
    zeros_read_zero(ours);
    windows_equal_the_whole(view, ours);
  }

  void zeros_read_zero(const Runs& runs) const {
    for (const Extent& run : runs)
      EXPECT_TRUE(!image::reads_zero(run.state) ||
                  all_zero(std::span(contents_).subspan(run.offset, run.length)))
          << fmt::format("[{:#x}, {:#x}) is said to read zero", run.offset, run.end());
  }

  void windows_equal_the_whole(const View& view, const Runs& whole) {
    for (int i = 0; i < 20; ++i) {
      const std::uint64_t offset = random_.below(disk_.size());
      const std::uint64_t length = std::max<std::uint64_t>(
          1, random_.between(1, disk_.size() - offset) >> random_.below(16));
      const Runs expected = window(whole, offset, length);
      EXPECT_EQ(testing::difference(walk(view, offset, length), expected), "")
          << "window " << offset << " + " << length;
      // A sink that has enough gets no more.
      std::uint64_t calls = 0;
      view.for_each_extent(offset, length, [&](const Extent&) { return ++calls < 2; });
      EXPECT_LE(calls, 2U);
    }
  }

  Random random_;
  const RandomImage& image_;
  const TempFolder& folder_;
  Disk disk_;
  Bytes contents_;   // as QEMU reads it
  Runs image_runs_;  // as the image view walks it
};

/// Replay one seed alone with NBDELTA_SEEDS=1.
TEST(AgainstQemu, EveryFeature) {
  const std::uint64_t first = Random::from_environment().seed();
  const std::uint64_t seeds = seeds_from_environment(kSeedsThatCover);
  Coverage coverage;
  const auto wants_another = [&](std::uint64_t done) {
    const bool uncovered =
        seeds >= kSeedsThatCover && done < kMostSeeds && !coverage.missing().empty();
    return !HasFailure() && (done < seeds || uncovered);
  };
  for (std::uint64_t seed = first; wants_another(seed - first); ++seed) {
    SCOPED_TRACE(fmt::format("NBDELTA_SEED={} NBDELTA_SEEDS=1", seed));
    try {
      const TempFolder folder;
      const RandomImage image = draw_image(seed, folder);
      coverage.add(image);
      SCOPED_TRACE(fmt::format("made by:\n{}", fmt::join(image.commands, "\n")));
      Comparison(seed, image, folder).run();
    } catch (const Error& error) {
      ADD_FAILURE() << error.what();
    }
  }
  fmt::print("{}", coverage.table());
  if (seeds < kSeedsThatCover || HasFailure())
    return;
  EXPECT_EQ(fmt::format("{}", fmt::join(coverage.missing(), ", ")), "") << "not covered";
}

}  // namespace
}  // namespace nbdelta::testing
