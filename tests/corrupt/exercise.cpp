#include "tests/corrupt/exercise.hpp"

#include <algorithm>
#include <cstring>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "image/qcow2_layer.hpp"
#include "image/view.hpp"

namespace nbdelta::testing {
namespace {

using image::Extent;
using image::View;

constexpr std::size_t kMostErrors = 200;
constexpr std::uint64_t kMostExtents = 1024;  // of one walk
constexpr std::uint64_t kWalk = 256 * kMiB;   // from the disk's start, and up to its end
constexpr std::uint64_t kMostBitmaps = 64;
constexpr std::uint64_t kMostReads = 64;
constexpr std::size_t kRead = 16 * kKiB;

class Exerciser {
 public:
  Exerciser(const image::Disk& disk, const std::vector<std::byte>& contents, Exercise& result)
      : disk_(disk), contents_(contents), result_(result) {}

  void run() {
    walk(View::layer(disk_));
    if (disk_.missing_backing().empty()) {
      walk(View::image(disk_));
      walk_bitmaps();
    }
    attempt([&] {
      image::Disk::Walk tables = disk_.new_walk();
      disk_.will_need(0, disk_.size(), tables);
    });
    read_through();
  }

 private:
  template <class Action>
  void attempt(Action action) {
    try {
      action();
    } catch (const Error& error) {
      if (result_.errors.size() < kMostErrors)
        result_.errors.emplace_back(error.what());
    }
  }

  void walk(const View& view) {
    const std::uint64_t size = disk_.size();
    walk_range(view, 0, std::min(size, kWalk));
    if (size > kWalk)
      walk_range(view, size - kWalk, kWalk);
    if (size > 1)  // a place that nothing is aligned to
      walk_range(view, size / 3, 1);
  }

  void walk_range(const View& view, std::uint64_t offset, std::uint64_t length) {
    if (length == 0)
      return;
    std::uint64_t expected = offset;
    std::uint64_t count = 0;
    std::vector<Extent> zeros;
    attempt([&] {
      view.for_each_extent(offset, length, [&](const Extent& extent) {
        invariant(extent.offset == expected && extent.length != 0, "extents are in order");
        invariant(extent.length <= offset + length - extent.offset, "extents stay in the range");
        expected = extent.end();
        if (image::reads_zero(extent.state) && zeros.size() < 64)
          zeros.push_back(extent);
        return ++count < kMostExtents;
      });
      invariant(expected == offset + length || count == kMostExtents, "extents cover the range");
    });
    result_.extents += count;
    if (disk_.missing_backing().empty())
      for (const Extent& extent : zeros)
        attempt([&] { expect_zeros(extent); });
  }

  void expect_zeros(const Extent& extent) {
    const std::vector<std::byte> bytes =
        read(extent.offset, std::min<std::uint64_t>(extent.length, kRead));
    invariant(
        std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; }),
        "what is said to read zero reads zero");
  }

  void walk_bitmaps() {
    const image::Qcow2Layer* const qcow2 = disk_.qcow2();
    if (qcow2 == nullptr)
      return;
    std::vector<image::DirtyBitmap::Info> infos;
    attempt([&] { infos = qcow2->bitmaps(); });
    infos.resize(std::min<std::size_t>(infos.size(), kMostBitmaps));
    for (const image::DirtyBitmap::Info& info : infos)
      attempt([&] {
        const image::DirtyBitmap bitmap = qcow2->bitmap(info);
        walk(View::dirty(disk_, bitmap));
      });
  }

  std::vector<std::byte> read(std::uint64_t offset, std::uint64_t length) {
    std::vector<std::byte> bytes(length, std::byte{0xa5});
    disk_.read(bytes, offset);
    result_.bytes_read += length;
    if (offset < contents_.size()) {
      const std::uint64_t known = std::min<std::uint64_t>(length, contents_.size() - offset);
      invariant(std::memcmp(bytes.data(), contents_.data() + offset, known) == 0,
                "what can be read is what was written");
    }
    return bytes;
  }

  void read_through() {
    const std::uint64_t size = disk_.size();
    const std::uint64_t step = std::max<std::uint64_t>(kRead, size / kMostReads);
    image::Disk::Walk tables = disk_.new_walk();
    for (std::uint64_t offset = 0; offset < size; offset += step) {
      const std::uint64_t length = std::min<std::uint64_t>(kRead, size - offset);
      std::vector<std::byte> of_a_walk;
      attempt([&] {
        std::vector<std::byte> bytes(length, std::byte{0x5a});
        disk_.read(bytes, offset, tables);
        of_a_walk = std::move(bytes);
      });
      attempt([&] {
        const std::vector<std::byte> bytes = read(offset, length);
        invariant(of_a_walk.empty() || bytes == of_a_walk, "a walk reads the same");
      });
    }
  }

  const image::Disk& disk_;
  const std::vector<std::byte>& contents_;
  Exercise& result_;
};

}  // namespace

void exercise_open(const image::Disk& disk, const std::vector<std::byte>& contents,
                   Exercise& result) {
  Exerciser(disk, contents, result).run();
}

image::Disk open_unlocked(const std::string& path) {
  image::OpenOptions options;
  options.locking = image::Locking::off;
  return image::Disk::open(path, options);
}

Exercise exercise(const std::string& path, const std::vector<std::byte>& contents) {
  Exercise result;
  try {
    const image::Disk disk = open_unlocked(path);
    exercise_open(disk, contents, result);
  } catch (const Error& error) {
    result.errors.emplace_back(error.what());
  }
  return result;
}

}  // namespace nbdelta::testing
