#include "bench/synthetic_image.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/big_endian.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "image/dirty_bitmap.hpp"
#include "image/qcow2_header.hpp"
#include "image/qcow2_overlay.hpp"

namespace nbdelta::bench {
namespace {

constexpr std::uint64_t kCluster = 64 * kKiB;
constexpr std::uint64_t kGranularity = 64 * kKiB;

/// Appends the bitmap's data to the file and points its table there. Refcounts are left as they
/// are: readers do not look at them.
void fill_bitmap(const File& file, const image::ExtentMap& map) {
  const image::Qcow2Header header = image::read_qcow2_header(file);
  const auto info = image::read_bitmap_directory(file, header.bitmaps.value(), kCluster).at(0);
  std::vector<std::byte> bits(std::uint64_t{info.table_entries} * kCluster);
  for (auto cursor = map.begin(); !cursor.at_end(); cursor.next()) {
    if (cursor.extent().state != image::State::data)
      continue;
    for (std::uint64_t bit = cursor.extent().offset / kGranularity;
         bit < div_round_up(cursor.extent().end(), kGranularity); ++bit)
      bits[bit / 8] |= std::byte{1} << (bit % 8);
  }
  const std::uint64_t data = round_up(file.size(), kCluster);
  file.write_at(bits, data);
  std::vector<be64> table(info.table_entries);
  for (std::size_t i = 0; i < table.size(); ++i)
    table[i] = data + i * kCluster;
  file.write_at(std::as_bytes(std::span(table)), info.table_offset);
}

}  // namespace

image::ExtentMap striped_map(std::uint64_t size, std::uint64_t block, std::uint64_t stride) {
  image::ExtentMap map;
  while (map.size() < size) {
    map.append(std::min(block, size - map.size()), image::State::data);
    map.append(std::min((stride - 1) * block, size - map.size()), image::State::unchanged);
  }
  return map;
}

SyntheticImage::SyntheticImage(const image::ExtentMap& map) {
  char name[] = "/dev/shm/nbdelta-bench-XXXXXX";
  FileDescriptor made(::mkstemp(name));
  if (!made)
    fail_errno("{}: cannot be made", name);
  path_ = name;
  try {
    const File file(std::move(made), path_);
    const image::Qcow2Overlay overlay(file, map, kCluster, {});
    overlay.write_tables();
    overlay.finish();
    const std::string command =
        fmt::format("qemu-img bitmap --add -g {} -f qcow2 {} b0", kGranularity, path_);
    if (std::system(command.c_str()) != 0)
      fail(EIO, "failed: {}", command);
    fill_bitmap(file, map);
  } catch (...) {
    ::unlink(path_.c_str());
    throw;
  }
}

SyntheticImage::~SyntheticImage() {
  ::unlink(path_.c_str());
}

}  // namespace nbdelta::bench
