#pragma once

#include <string>
#include <string_view>

#include "image/disk.hpp"

namespace nbdelta::image {

/// An image that a process opens itself, with no server between:
/// `delta:PATH[?KEY=VALUE[&KEY=VALUE...]]`, percent-encoded. The keys are those of the plugin
/// (`format`, `backing`, `lock`, `direct`), and which of its exports is meant: `bitmap=NAME` or
/// `view=layer`; the disk with its allocation without either.
struct ImageUri {
  std::string path;
  OpenOptions open;
  std::string bitmap{};  // empty: none
  bool layer = false;

  static bool is_one(std::string_view uri) { return uri.starts_with("delta:"); }
  /// Throws Error (EINVAL).
  static ImageUri parse(std::string_view text);
  std::string text() const;
};

}  // namespace nbdelta::image
