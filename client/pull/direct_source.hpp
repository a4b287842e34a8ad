#pragma once

#include <optional>
#include <stop_token>

#include "base/file.hpp"
#include "client/nbd/connection.hpp"
#include "image/dirty_bitmap.hpp"
#include "image/disk.hpp"
#include "image/extent_map.hpp"
#include "image/image_uri.hpp"
#include "image/view.hpp"

namespace nbdelta::client::pull {

/// Of a source that is no server. Throws target::UsageError. Of the rest of `source` only the
/// context counts: there must be none.
image::ImageUri parse_image_uri(const nbd::ConnectOptions& source);

/// An image that this process reads itself, opened and locked; nothing changes it while this lives.
class DirectSource {
 public:
  /// `full`: the whole disk, whatever the URI asks for. Throws Error.
  explicit DirectSource(const image::ImageUri& uri, bool full = false);
  DirectSource(const DirectSource&) = delete;
  DirectSource& operator=(const DirectSource&) = delete;

  const image::Disk& disk() const { return disk_; }
  /// Otherwise read_map() says what is allocated.
  bool shows_changes() const { return view_->is_changed_view(); }
  /// As nbd::read_map(), and as image::read_map() for `found`. Throws Error (ECANCELED) once a stop
  /// is requested.
  image::ExtentMap read_map(const std::stop_token& stop, image::KnownRuns* found = nullptr) const;
  /// The file in which the first data of the map stands as it is; null where there is none. Throws
  /// Error.
  const File* copied_from(const image::ExtentMap& map) const;

 private:
  image::Disk disk_;
  std::optional<image::DirtyBitmap> bitmap_;
  std::optional<image::View> view_;
};

}  // namespace nbdelta::client::pull
