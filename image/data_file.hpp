#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/file.hpp"
#include "image/layer.hpp"

namespace nbdelta::image {

/// Reads image data (not metadata) from a file: as it comes, or with O_DIRECT through an aligned
/// buffer of the calling thread. Safe to call from several threads.
class DataFile {
 public:
  DataFile() = default;
  /// `direct_alignment` 0: `file` was opened without O_DIRECT.
  DataFile(const File& file, std::size_t direct_alignment)
      : file_(&file), alignment_(direct_alignment), size_(file.size()) {}

  const File& file() const { return *file_; }
  /// Length when it was opened, bytes.
  std::uint64_t size() const { return size_; }

  /// Reads exactly; throws Error (EIO) where the file ends before.
  void read(std::span<std::byte> out, HostOffset offset) const;

  /// As read, but returns the bytes that there are where the file ends before.
  std::size_t read_up_to(std::span<std::byte> out, HostOffset offset) const;

  /// Asks the kernel to read ahead; a hint.
  void will_need(HostOffset offset, std::uint64_t length) const;

 private:
  std::size_t read_direct(std::span<std::byte> out, std::uint64_t offset) const;

  const File* file_ = nullptr;
  std::size_t alignment_ = 0;
  std::uint64_t size_ = 0;
};

}  // namespace nbdelta::image
