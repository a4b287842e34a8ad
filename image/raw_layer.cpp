#include "image/raw_layer.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/error.hpp"

namespace nbdelta::image {

RawLayer::RawLayer(File file, File direct, std::size_t direct_alignment)
    : file_(std::move(file)),
      direct_(std::move(direct)),
      data_(direct_ ? direct_ : file_, direct_alignment) {}

Run RawLayer::run_at(std::uint64_t offset, std::uint64_t limit) const {
  const std::lock_guard guard(mutex_);
  if (offset < data_begin_ || offset >= data_end_) {
    const Run found = find_run_at(offset, size() - offset);
    if (found.allocation != Allocation::data)
      return {.allocation = found.allocation, .length = std::min(limit, found.length)};
    data_begin_ = offset;
    data_end_ = offset + found.length;
  }
  return {.allocation = Allocation::data,
          .length = std::min(limit, data_end_ - offset),
          .host_offset = HostOffset{offset}};
}

Run RawLayer::find_run_at(std::uint64_t offset, std::uint64_t limit) const {
  const auto seek = [&](int whence) {
    return ::lseek(file_.fd(), static_cast<off_t>(offset), whence);
  };
  const auto length_to = [&](off_t end) {
    return std::min(limit, static_cast<std::uint64_t>(end) - offset);
  };
  const off_t data = seek(SEEK_DATA);
  if (data < 0 && errno == ENXIO)  // no data from here to the end
    return {.allocation = Allocation::unallocated, .length = limit};
  if (data > static_cast<off_t>(offset))
    return {.allocation = Allocation::unallocated, .length = length_to(data)};
  // Where the file system or device knows no holes, all is data.
  const off_t hole = data < 0 ? -1 : seek(SEEK_HOLE);
  const std::uint64_t length = hole > static_cast<off_t>(offset) ? length_to(hole) : limit;
  return {.allocation = Allocation::data, .length = length, .host_offset = HostOffset{offset}};
}

Run RawLayer::run_to_read_at(std::uint64_t offset, std::uint64_t limit) const {
  return {.allocation = Allocation::data, .length = limit, .host_offset = HostOffset{offset}};
}

void RawLayer::read(std::span<std::byte> out, std::uint64_t /*offset*/, const Run& run) const {
  data_.read(out, run.host_offset);
}

}  // namespace nbdelta::image
