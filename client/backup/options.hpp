#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "client/backup/environment.hpp"
#include "client/backup/paths.hpp"

namespace nbdelta::client::backup {

enum class Quiesce : std::uint8_t {
  automatic,  // freeze where there is an agent that can; otherwise say so and go on
  require,    // no backup without
  no,
};

enum class Tracking : std::uint8_t { bitmap, overlay };

/// What a session is to do. Paths are this machine's; `paths` says what QEMU calls them.
struct Options {
  std::string qmp;
  std::optional<std::string> agent;
  std::string vm;
  std::string folder;  // REPO/VM
  bool external = false;
  bool full = false;
  bool require_incremental = false;
  std::vector<std::string> disks;  // empty: all
  std::vector<std::string> exclude;
  Quiesce quiesce = Quiesce::automatic;
  std::optional<std::vector<std::string>> mountpoints;
  std::chrono::milliseconds freeze_deadline{10'000};
  bool presync = false;
  Paths paths;
  Tracking tracking = Tracking::bitmap;
  std::string overlay_dir;  // empty: beside each base
  std::chrono::milliseconds commit_deadline{600'000};
  bool direct = false;  // read the images without a server, but for maps that QEMU has
  Listen listen;        // of external sessions; `socket` is the folder of the disks' sockets here
};

/// Tells a person how it goes.
struct Reporter {
  std::function<void(const std::string&)> say = [](const std::string&) {};
  /// The counters stay valid until the next call; null: the pull has ended.
  std::function<void(const std::string& disk, const pull::Counters*)> progress =
      [](const std::string&, const pull::Counters*) {};
};

/// The command cannot be carried out as it was given; nothing was touched, or all of it has been
/// put right.
class Refused : public Error {
 public:
  using Error::Error;
};

template <class... Args>
[[noreturn]] void refuse(int error_number, fmt::format_string<Args...> format, Args&&... args) {
  throw Refused(error_number, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace nbdelta::client::backup
