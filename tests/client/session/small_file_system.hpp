#pragma once

#include <string>

#include "tests/support/process.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {

/// A file system that is soon full. Needs root.
class SmallFileSystem {
 public:
  explicit SmallFileSystem(const std::string& size) {
    run_ok({"mount", "-t", "tmpfs", "-o", "size=" + size, "none", folder_.path()});
  }
  ~SmallFileSystem() { run({"umount", "--lazy", folder_.path()}); }
  void resize(const std::string& size) {
    run_ok({"mount", "-o", "remount,size=" + size, folder_.path()});
  }
  const std::string& path() const { return folder_.path(); }

 private:
  TempFolder folder_;
};

}  // namespace nbdelta::testing
