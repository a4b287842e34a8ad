#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>

#include "sim/file_image.hpp"

namespace nbdelta::sim {

/// The files of this machine, with QEMU's locks on them (image/image_lock.hpp). For one thread.
class FileHost final : public ImageHost {
 public:
  /// An image that is open already is shared with those who have it.
  std::shared_ptr<Image> open(const std::string& path, const std::string& format) override;
  bool lock_for_writing(const std::string& path, bool locked) override;
  bool written_by_others(const std::string& path) override;
  bool read_by_others(const std::string& path) override;

  /// The bytes of a granule that one of its images has. Requires out.size() == kFileGranule.
  void fill(std::span<std::byte> out, std::uint64_t granule, WriteNumber number) const {
    foreign_.fill(out, granule, number);
  }

 private:
  ForeignGranules foreign_;
  std::map<std::string, std::weak_ptr<FileImage>> open_;  // by what QEMU calls them
  std::set<std::string> writers_;  // of which a node of ours, or another process, has the lock
};

}  // namespace nbdelta::sim
