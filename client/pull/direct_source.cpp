#include "client/pull/direct_source.hpp"

#include <cerrno>

#include "base/error.hpp"
#include "client/target/open_target.hpp"
#include "image/qcow2_layer.hpp"

namespace nbdelta::client::pull {
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

image::ExtentMap DirectSource::read_map(const std::stop_token& stop,
                                        image::KnownRuns* found) const {
  const auto check = [&] {
    if (stop.stop_requested())
      fail(ECANCELED, "interrupted");
  };
  return image::read_map(*view_, check, found);
}

const File* DirectSource::copied_from(const image::ExtentMap& map) const {
  const auto first = map.at_data(0);
  if (first.at_end())
    return nullptr;
  image::Disk::Walk walk = disk_.new_walk();
  return disk_.place_at(first.extent().offset, first.extent().length, walk).file;
}

}  // namespace nbdelta::client::pull
