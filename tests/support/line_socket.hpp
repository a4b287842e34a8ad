#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "base/file.hpp"

namespace nbdelta::testing {

/// A connection to a Unix socket of QEMU (QMP, agent, a port of the guest) as it is: what is sent
/// goes out byte for byte, what comes in is read line by line. For one thread.
class LineSocket {
 public:
  /// Throws Error where nobody listens.
  explicit LineSocket(const std::string& path);

  void send(std::string_view bytes);
  /// The next line without its end. Throws Error (ETIMEDOUT, EPIPE) where none comes.
  std::string read_line(std::chrono::milliseconds timeout);

 private:
  std::string path_;
  FileDescriptor fd_;
  std::string received_;
};

}  // namespace nbdelta::testing
