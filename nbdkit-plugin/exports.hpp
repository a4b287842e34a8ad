#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "image/disk.hpp"
#include "image/view.hpp"
#include "nbdkit-plugin/options.hpp"

namespace nbdelta::plugin {

/// One name under which the image is served.
struct Export {
  std::string name;
  std::string description;  // ends with the state of what it shows (docs/extents.md)
  image::View view;
};

/// All that is served: the disk and its views. Constant after it was made, but for the caches
/// inside the disk.
class Exports {
 public:
  /// Opens the image and reads the map. Throws Error.
  explicit Exports(const Options& options);

  /// What can be served now, the default one ("") first where it is.
  const std::vector<Export>& all() const { return exports_; }

  /// Throws Error that says why there is no such export, and what would help.
  const Export& find(std::string_view name) const;

  /// What is not served that could be, and why, for the log.
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  void add(std::string name, std::string_view description, std::uint64_t state, image::View view);
  void add_bitmaps();

  image::Disk disk_;
  std::vector<std::unique_ptr<image::DirtyBitmap>> bitmaps_;
  std::optional<image::ExtentMap> map_;
  std::vector<Export> exports_;
  std::vector<std::string> warnings_;
};

}  // namespace nbdelta::plugin
