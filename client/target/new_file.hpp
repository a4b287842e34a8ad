#pragma once

#include <sys/types.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include "base/file.hpp"
#include "base/file_identity.hpp"

namespace nbdelta::client::target {

/// What to do where the target's name is taken.
enum class Existing : std::uint8_t {
  refuse,
  replace,  // by a new file, once that is complete
};

/// A file that gets its name only when it is complete; until then it is NAME.partial, locked so
/// that no other pull and no QEMU writes to it.
///
/// Invariant: the name is given, or the partial file is removed, never both; whoever comes first.
class NewFile {
 public:
  /// Where `path` is a symbolic link, the file that it leads to is meant. Throws TargetRefused.
  NewFile(const std::string& path, Existing existing);

  /// Throws TargetRefused where the name is taken and must not be replaced.
  void check_name() const;

  /// Makes the empty partial file, or takes over one that an interrupted pull has left. It has the
  /// mode of the file that it will replace, and its owner where we may give files away.
  void create();

  /// Throws TargetRefused where the file system has not that many bytes left, unless they need no
  /// space: the file, which is empty, can share the blocks of `shared`.
  void check_space(std::uint64_t bytes, const File* shared) const;

  /// Its name until it is complete.
  const std::string& partial() const { return partial_; }

  /// Valid after create().
  const File& file() const { return file_; }

  /// Gives the file its name and makes that durable; the contents are durable already. Throws
  /// Error.
  void publish();

  /// Removes the partial file; says what was done.
  std::string abandon() noexcept;

 private:
  enum class State : std::uint8_t { none, partial, published, abandoned };

  void open_partial(mode_t mode);
  void take_permissions_of(const struct stat& old) const;
  bool can_share_blocks_of(const File& other) const;
  bool has_its_partial_name() const;
  void rename();

  std::string path_;
  std::string partial_;
  Existing existing_;
  File file_;
  std::optional<FileIdentity> identity_;  // the file's
  std::mutex mutex_;                      // of state_
  State state_ = State::none;
};

}  // namespace nbdelta::client::target
