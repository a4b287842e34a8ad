#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/guest/operation_log.hpp"
#include "tests/support/line_socket.hpp"
#include "tests/support/process.hpp"

namespace nbdelta::testing {

struct GuestDisk {
  /// What the guest does with it: mounts its ext4 file system and writes files, or writes blocks
  /// straight to it (writer.cpp).
  enum class Use { file_system, blocks };
  /// How QEMU has it: `-blockdev` with the node name `name`, and `name`-file below; or `-drive`
  /// with the id `name` and node names that QEMU makes up.
  enum class Attach { blockdev, drive };

  std::string path = {};
  std::string format = {};  // "qcow2" or "raw"
  Use use = Use::blocks;
  Attach attach = Attach::blockdev;
  std::string name = {};  // also the id of the device
};

/// Makes the disk's image: blank, or with an empty ext4 file system.
void make_disk(const GuestDisk& disk, std::uint64_t size);

struct GuestOptions {
  bool agent = true;
  unsigned rate = 200;        // operations a second for all block disks together, and for each
                              // file system; 0: as many as it can
  bool start_paused = false;  // the writer waits for control("start")
  std::uint64_t area = 16 * 1024 * 1024;  // bytes at the beginning of each disk that are written to
  std::uint64_t seed = 1;                 // of what the writer draws
  std::vector<std::string> extra_arguments = {};  // of QEMU
};

/// A real guest: Debian's kernel under QEMU (TCG: KVM may be there and yet hang a guest), with
/// qemu-ga and a writer that logs what it does. It takes commands about 5 s after it was made. QEMU
/// ends with the object. For one thread; QEMU ends with that thread too.
class Guest {
 public:
  /// Starts QEMU. Sockets, log and console are files in `folder`, which exists and outlives the
  /// object; it takes one guest. The guest sees the disks as vda, vdb, ... in their order; those
  /// used for blocks are disks 0, 1, ... of the operation log.
  Guest(std::string folder, const std::vector<GuestDisk>& disks, const GuestOptions& options = {});

  /// Until the file systems are mounted and the writer writes (or waits). Throws Error with the
  /// console's text where that takes too long or the guest ends.
  void wait_until_ready(std::chrono::milliseconds timeout = std::chrono::seconds(120));

  /// Paths of the Unix sockets, each for one client at a time.
  std::string qmp() const { return folder_ + "/qmp.sock"; }
  std::string agent() const { return folder_ + "/agent.sock"; }

  pid_t pid() const { return qemu_->pid(); }
  bool running() { return qemu_->running(); }

  /// SIGKILL to QEMU, as a crash of the host's software; returns when it is gone.
  void kill();
  /// The writer stops, the file systems are unmounted, the guest goes off, QEMU ends. Throws Error
  /// where that takes too long.
  void shut_down(std::chrono::milliseconds timeout = std::chrono::seconds(60));

  /// Tells the writer "start", "stop" or "rate N", and waits until it has done so; after "stop"
  /// nothing is in flight. A frozen guest cannot stop while it writes to a file system. Throws
  /// Error where it does not answer "ok".
  void control(std::string_view command,
               std::chrono::milliseconds timeout = std::chrono::seconds(30));

  /// What the writer has logged so far, what is in flight included. To judge a snapshot: what was
  /// done when this is called before the command was done before it; what begins later has not
  /// begun in a call after the reply.
  std::vector<LoggedOperation> operations() const;

  /// The same as text, see longest_stall().
  std::string operation_log() const;

  /// What the guest said on its console, and QEMU on stderr: for messages.
  std::string console() const;

 private:
  std::string folder_;
  std::unique_ptr<Background> qemu_;
  std::optional<LineSocket> control_;
};

}  // namespace nbdelta::testing
