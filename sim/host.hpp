#pragma once

#include <cstdint>
#include <initializer_list>
#include <list>
#include <optional>
#include <string>
#include <vector>

#include "sim/fake_agent.hpp"
#include "sim/fake_qemu.hpp"
#include "sim/process.hpp"
#include "sim/random.hpp"
#include "sim/schedule.hpp"
#include "sim/store.hpp"

namespace nbdelta::sim {

/// One plugin: a process that serves an image which nobody may write to. Or, without a process, an
/// image that a pull of nbdelta's has open itself.
struct Plugin {
  std::string name;
  std::string image;
  std::vector<std::string> locked;  // the image, and what is below it
  std::vector<bool> changed;        // of its changed view; empty: it has none
  bool layer = false;
  bool alive = true;
  bool outlives = false;  // its session
  bool direct = false;    // no process: it lives as long as the pull, or as nbdelta
};

/// What nbdelta's own processes take their time for.
struct Costs {
  Clock::Duration message{};      // from one process to another
  Clock::Duration file_change{};  // with its fsync
  Clock::Duration start{};        // of a process
};

/// The machine that sessions run on, in virtual time: what their environment has of it.
class Host {
 public:
  virtual ~Host() = default;

  virtual Store& store() = 0;
  virtual Random& random() = 0;
  /// All three are null where QEMU does not run.
  virtual Process* qemu_process() = 0;
  virtual FakeQemu* qemu() = 0;
  virtual FakeAgent* agent() = 0;
  virtual std::list<Plugin>& plugins() = 0;
  virtual Process& start_guardian_process() = 0;

  virtual Costs costs() const { return {}; }
  /// What a pull needs for one granule.
  virtual Clock::Duration pull_time(bool changed) = 0;
  /// Bytes, of each folder.
  virtual std::uint64_t free_space() const = 0;

  virtual bool interrupted() const { return false; }
  /// An occasion for faults of these kinds: the one that falls upon it.
  virtual std::optional<FaultKind> strike(std::initializer_list<FaultKind> /*kinds*/) {
    return std::nullopt;
  }
  /// Something that a crash could fall upon has been done, by `self`. May throw, which ends that.
  virtual void step(const std::string& /*what*/, Process* /*self*/) {}
  /// A file was removed by a session.
  virtual void removed(const std::string& /*path*/) {}

  void kill_plugin(Plugin& plugin) {
    if (!plugin.alive)
      return;
    plugin.alive = false;
    for (const std::string& path : plugin.locked)
      if (MemoryImage* image = store().image(path))
        --image->readers;
  }
};

}  // namespace nbdelta::sim
