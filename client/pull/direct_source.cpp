#include "client/pull/direct_source.hpp"

#include <algorithm>
#include <future>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "client/target/open_target.hpp"
#include "image/qcow2_layer.hpp"

namespace nbdelta::client::pull {
namespace {

constexpr std::uint64_t kParts = 16;
constexpr std::size_t kPartsAtOnce = 4;  // a quarter of the map is in memory twice

void append(image::ExtentMap& map, const image::ExtentMap& part) {
  part.for_each(0, part.size(), [&](const image::Extent& extent) {
    map.append(extent.length, extent.state);
    return true;
  });
}

}  // namespace

image::ImageUri parse_image_uri(const nbd::ConnectOptions& source) {
  try {
    if (!source.bitmap_context.empty())
      fail(EINVAL, "{}: has no contexts, as a server has; say delta:PATH?bitmap=NAME", source.uri);
    return image::ImageUri::parse(source.uri);
  } catch (const Error& error) {
    throw target::UsageError(error.error_number(), error.what());
  }
}

DirectSource::DirectSource(const image::ImageUri& uri, bool full)
    : disk_(image::Disk::open(uri.path, uri.open)) {
  if (uri.layer && !full) {
    view_ = image::View::layer(disk_);
    return;
  }
  if (!disk_.missing_backing().empty())
    fail(EACCES, "{}", disk_.missing_backing());
  if (uri.bitmap.empty() || full) {
    view_ = image::View::image(disk_);
    return;
  }
  if (disk_.qcow2() == nullptr)
    fail(ENOENT, "{}: a raw image holds no bitmaps", uri.path);
  bitmap_.emplace(disk_.qcow2()->bitmap(uri.bitmap));
  view_ = image::View::dirty(disk_, *bitmap_);
}

image::ExtentMap DirectSource::read_map() const {
  const std::uint64_t size = disk_.size();
  const std::uint64_t part_size = std::max(round_up(div_round_up(size, kParts), kGiB), kGiB);
  image::ExtentMap map;
  for (std::uint64_t offset = 0; offset < size;) {
    std::vector<std::future<image::ExtentMap>> parts;
    for (; offset < size && parts.size() < kPartsAtOnce; offset += part_size)
      parts.push_back(std::async(std::launch::async, [this, offset, part_size, size] {
        return read_part(offset, std::min(part_size, size - offset));
      }));
    for (auto& part : parts)
      append(map, part.get());
  }
  return map;
}

image::ExtentMap DirectSource::read_part(std::uint64_t offset, std::uint64_t length) const {
  image::ExtentMap part;
  view_->for_each_extent(offset, length, [&](const image::Extent& extent) {
    part.append(extent.length, extent.state);
    return true;
  });
  return part;
}

}  // namespace nbdelta::client::pull
