#pragma once

#include <string>
#include <string_view>

namespace nbdelta::testing {

/// A new folder in $TMPDIR, or in /var/tmp (a real file system: images may be large, and /tmp may
/// be memory); removed with all that is in it at the end.
class TempFolder {
 public:
  TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder();

  const std::string& path() const { return path_; }
  /// The path of `name` in the folder.
  std::string operator/(std::string_view name) const;

 private:
  std::string path_;
};

}  // namespace nbdelta::testing
