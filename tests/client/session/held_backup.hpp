#pragma once

#include <optional>

#include "tests/client/session/session_test.hpp"

namespace nbdelta::testing {

/// A backup whose pull has begun and is held until it is released: what a test does meanwhile
/// happens during the pull, however fast or busy the machine is.
class HeldBackup {
 public:
  explicit HeldBackup(const Points& points, const Command& more = {});
  ~HeldBackup();

  /// Lets the pull go on; how the backup ended.
  Outcome release();

 private:
  void resume();

  TempFolder programs_;
  std::optional<Background> nbdelta_;
  std::vector<pid_t> held_;
};

}  // namespace nbdelta::testing
