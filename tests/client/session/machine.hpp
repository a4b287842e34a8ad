#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/line_socket.hpp"
#include "tests/support/process.hpp"
#include "tests/support/random.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {

struct MachineDisk {
  std::string name;              // id of the device
  std::string format = "qcow2";  // or "raw"
  std::uint64_t size = 32 << 20;
  bool direct = false;       // cache.direct; not with by_drive
  bool by_drive = false;     // -drive: QEMU makes the node names up
  std::string backing = {};  // path of a qcow2 image below
  std::string options = {};  // of qemu-img create
  std::string folder = {};   // of the image; empty: the machine's
};

/// Real QEMU with real disks, and nothing that runs in the guest: the test itself writes to the
/// disks, through the devices' own back ends, and writes the same to plain images beside them. So
/// what a disk must hold is known at every moment. For one thread.
class Machine {
 public:
  explicit Machine(std::vector<MachineDisk> disks, Command extra_arguments = {});
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  /// With what serves its disks.
  ~Machine();

  const std::string& folder() const { return folder_.path(); }
  std::string qmp() const { return folder_ / "qmp"; }
  std::string image(const MachineDisk& disk) const;
  /// What a guest is started on: the image, or the overlay that is named beside it.
  std::string current(const MachineDisk& disk) const;
  /// Empty where what the guest has equals the model. QEMU must have ended.
  std::string difference_from_model(const MachineDisk& disk) const;
  /// What the disk must hold; raw.
  std::string model(const MachineDisk& disk) const;
  const std::vector<MachineDisk>& disks() const { return disks_; }
  pid_t pid() const { return qemu_->pid(); }

  /// `environment`: variables of this run, "NAME=VALUE".
  void start(const Command& environment = {});
  /// SIGKILL; returns when it is gone.
  void kill();
  void quit();

  /// A command on a QMP connection of our own; its "return", or the whole answer where it is an
  /// error.
  boost::json::value command(const std::string& name, const boost::json::object& arguments = {});

  /// A qemu-io command, on the disk and on its model: "write -P 7 64k 128k".
  void write(const MachineDisk& disk, const std::string& what);
  /// The same with a "write", and without waiting for QEMU to acknowledge it.
  void begin_write(const MachineDisk& disk, const std::string& what);
  /// Writes that QEMU has acknowledged since its start.
  std::int64_t acknowledged_writes(const MachineDisk& disk);
  /// Some writes, zeros and discards all over every disk.
  void write_at_random(Random& random, unsigned count);

  /// Names of all nodes, those of automatic names without their number.
  std::vector<std::string> nodes();
  /// What of ours is in QEMU or beside the images; sorted.
  std::vector<std::string> leftovers();

 private:
  void qemu_io_in_guest(const MachineDisk& disk, const std::string& what);
  Command disk_arguments(const MachineDisk& disk) const;

  const std::string& temporary_;  // the folder for all processes' temporary files
  TempFolder folder_;
  std::vector<MachineDisk> disks_;
  Command extra_arguments_;
  std::unique_ptr<Background> qemu_;
  std::optional<LineSocket> control_;
};

}  // namespace nbdelta::testing
