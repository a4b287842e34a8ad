#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "client/nbd/connection.hpp"
#include "image/dirty_bitmap.hpp"
#include "image/disk.hpp"
#include "image/extent_map.hpp"
#include "image/view.hpp"

namespace nbdelta::client::pull {

/// An image that this process reads itself, with no server between:
/// `delta:PATH[?KEY=VALUE[&KEY=VALUE...]]`, percent-encoded. The keys are those of the plugin
/// (`format`, `backing`, `lock`, `direct`), and which of its exports is meant: `bitmap=NAME` or
/// `view=layer`; the disk with its allocation without either.
struct DirectUri {
  std::string path;
  image::OpenOptions open;
  std::string bitmap;
  bool layer = false;

  static bool is_one(std::string_view uri) { return uri.starts_with("delta:"); }
  /// Throws target::UsageError. Of the rest of `source` only the context counts: there must be
  /// none.
  static DirectUri of(const nbd::ConnectOptions& source);
};

/// Such an image, opened and locked; nothing changes it while this lives.
class DirectSource {
 public:
  /// `full`: the whole disk, whatever the URI asks for. Throws Error.
  explicit DirectSource(DirectUri uri, bool full = false);

  const image::Disk& disk() const { return disk_; }
  /// Otherwise read_map() says what is allocated.
  bool shows_changes() const { return view_->is_changed_view(); }
  /// As nbd::read_map().
  image::ExtentMap read_map() const;

 private:
  image::Disk disk_;
  std::optional<image::DirtyBitmap> bitmap_;
  std::optional<image::View> view_;
};

}  // namespace nbdelta::client::pull
