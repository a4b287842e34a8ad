#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>

#include "base/file.hpp"

namespace nbdelta::testing {

/// Between nbdelta and QEMU: shows every command to the test before QEMU gets it. One client at a
/// time.
class QmpTap {
 public:
  /// `before` is called with each line, in a thread of the tap's own.
  QmpTap(std::string path, std::string qemu,
         std::function<void(const std::string& command)> before);
  ~QmpTap();

  const std::string& path() const { return path_; }

  /// For `before`: the process that sends the command.
  pid_t client() const { return client_; }
  /// For `before`: the client dies (SIGKILL), and QEMU does not get its command.
  void kill_client();
  /// For `before`: the client is stopped (SIGSTOP).
  void stop_client();
  /// For `before`: QEMU does not get this command.
  void drop() { dropped_ = true; }

 private:
  void run();
  void serve(int client, int qemu);

  std::string path_;
  std::string qemu_;
  std::function<void(const std::string&)> before_;
  FileDescriptor listener_;
  pid_t client_ = 0;  // the process; 0: dead by our hand
  bool dropped_ = false;
  std::atomic<bool> ending_ = false;
  std::thread thread_;
};

}  // namespace nbdelta::testing
