#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "base/file.hpp"
#include "image/data_file.hpp"
#include "image/layer.hpp"

namespace nbdelta::image {

/// A raw image: a regular file, whose holes (SEEK_HOLE) are unallocated, or a block device. It
/// never has a backing file.
class RawLayer final : public Layer {
 public:
  /// `direct` is the same file opened with O_DIRECT, or empty.
  RawLayer(File file, File direct, std::size_t direct_alignment);

  const std::string& name() const override { return file_.name(); }
  std::uint64_t size() const override { return data_.size(); }
  Run run_at(std::uint64_t offset, std::uint64_t limit) const override;
  Run run_to_read_at(std::uint64_t offset, std::uint64_t limit) const override;
  Run run_to_read_at(std::uint64_t offset, std::uint64_t limit,
                     LayerWalk& /*walk*/) const override {
    return run_to_read_at(offset, limit);
  }
  void read(std::span<std::byte> out, std::uint64_t offset, const Run& run) const override;
  const File& data_file() const override { return data_.file(); }
  void will_need(const Run& run) const override { data_.will_need(run.host_offset, run.length); }

 private:
  Run find_run_at(std::uint64_t offset, std::uint64_t limit) const;

  File file_;  // holds the locks
  File direct_;
  DataFile data_;
  mutable std::mutex mutex_;  // of both below
  // The data that was found last: to look for its end again, a file system may walk through all of
  // it (tmpfs).
  mutable std::uint64_t data_begin_ = 0;
  mutable std::uint64_t data_end_ = 0;
};

}  // namespace nbdelta::image
