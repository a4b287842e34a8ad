#pragma once

#include <optional>
#include <string>

#include "tests/support/process.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {

/// An NBD export as a file on FUSE (nbdfuse).
class FuseMount {
 public:
  static bool is_possible();

  /// Returns when the file is there.
  explicit FuseMount(const std::string& uri);
  ~FuseMount();

  std::string file() const { return folder_ / "mount/nbd"; }

  /// Which is an error while somebody has the file open.
  void unmount();

 private:
  TempFolder folder_;
  std::optional<Background> process_;
};

}  // namespace nbdelta::testing
