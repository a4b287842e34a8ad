#include "sim/store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace nbdelta::sim {

void MemoryImage::take_room(std::uint64_t granule) {
  if (held_[granule] == Held::data)
    return;
  if (full)
    fail(ENOSPC, "No space left on device");
  ++data_;
}

void MemoryImage::write(std::uint64_t granule, WriteNumber number) {
  take_room(granule);
  modified = *now_;
  if (format_ != "raw" && held_[granule] != Held::data)
    unflushed_.push_back({granule, held_[granule], numbers_[granule]});
  held_[granule] = Held::data;
  numbers_[granule] = number;
}

void MemoryImage::write_zero(std::uint64_t granule) {
  modified = *now_;
  if (format_ == "raw") {
    numbers_[granule] = 0;
    return;
  }
  if (held_[granule] == Held::zero)
    return;
  unflushed_.push_back({granule, held_[granule], numbers_[granule]});
  if (held_[granule] == Held::data)
    --data_;
  held_[granule] = Held::zero;
}

void MemoryImage::lose_unflushed() {
  for (auto it = unflushed_.rbegin(); it != unflushed_.rend(); ++it) {
    held_[it->granule] = it->held;
    numbers_[it->granule] = it->number;
  }
  unflushed_.clear();
  data_ = static_cast<std::uint64_t>(std::count(held_.begin(), held_.end(), Held::data));
}

bool MemoryImage::is_empty() const {
  return std::all_of(held_.begin(), held_.end(), [](Held held) { return held == Held::nothing; });
}

void MemoryImage::resize(std::uint64_t granules) {
  held_.resize(granules, format_ == "raw" ? Held::data : Held::nothing);
  numbers_.resize(granules);
}

std::shared_ptr<Image> Store::open(const std::string& path, const std::string& format) {
  const auto found = files_.find(path);
  if (found == files_.end())
    fail(ENOENT, "Could not open '{}': No such file or directory", path);
  if (!found->second.image || (format == "qcow2" && found->second.image->format() != "qcow2"))
    fail(EINVAL, "Image is not in qcow2 format");
  return found->second.image;
}

bool Store::lock_for_writing(const std::string& path, bool locked) {
  const auto found = files_.find(path);
  if (found == files_.end() || !found->second.image)
    return true;  // it was removed below its user
  MemoryImage& image = *found->second.image;
  if (locked && (image.readers != 0 || image.writer))
    return false;
  image.writer = locked;
  return true;
}

bool Store::written_by_others(const std::string& path) {
  const MemoryImage* found = image(path);
  return found != nullptr && found->writer;
}

bool Store::read_by_others(const std::string& path) {
  const MemoryImage* found = image(path);
  return found != nullptr && found->readers != 0;
}

MemoryImage& Store::create_image(const std::string& path, const std::string& format,
                                 std::uint64_t granules) {
  StoredFile& file = files_[path];
  file = {.text = {}, .image = std::make_shared<MemoryImage>(format, granules, now)};
  return *file.image;
}

MemoryImage* Store::image(const std::string& path) const {
  const auto found = files_.find(path);
  return found == files_.end() ? nullptr : found->second.image.get();
}

}  // namespace nbdelta::sim
