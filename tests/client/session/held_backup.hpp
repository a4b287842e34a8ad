#pragma once

#include <optional>

#include "tests/client/session/session_test.hpp"

namespace nbdelta::testing {

/// An nbdkit of the test's own, which nbdelta starts instead of the real one.
class NbdkitInstead {
 public:
  /// Of /bin/sh, with nbdkit's arguments. "$nbdkit" is the real one, "$folder" that of the script.
  explicit NbdkitInstead(const std::string& script);

  std::string folder() const { return folder_.path(); }
  /// For an nbdelta that is to find it.
  ProcessOptions options() const;

 private:
  TempFolder folder_;
};

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

  NbdkitInstead nbdkit_;
  std::optional<Background> nbdelta_;
  std::vector<pid_t> held_;
};

/// A backup that is held where its first nbdkit would start: the guest runs on the overlays, and
/// nothing of what lies below has been read.
class HeldExport {
 public:
  /// `backup` is the whole command.
  explicit HeldExport(const Command& backup);
  ~HeldExport();

  /// Lets it go on, which nbdelta waits 30 s for; how the backup ended.
  Outcome release();

 private:
  void resume();

  NbdkitInstead nbdkit_;
  Background nbdelta_;
};

}  // namespace nbdelta::testing
