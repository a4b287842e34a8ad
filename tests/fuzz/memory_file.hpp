#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/error.hpp"
#include "base/file.hpp"

namespace nbdelta::testing {

/// A file in memory that holds one input after the other.
class MemoryFile {
 public:
  MemoryFile() : file_(FileDescriptor(::memfd_create("input", MFD_CLOEXEC)), "input") {
    if (!file_)
      fail_errno("memfd_create");
  }

  void hold(std::span<const std::uint8_t> input) const {
    file_.resize(0);  // what was there must not show
    file_.write_at(std::as_bytes(input), 0);
  }

  std::string path() const { return fmt::format("/proc/self/fd/{}", file_.fd()); }

 private:
  File file_;
};

}  // namespace nbdelta::testing
