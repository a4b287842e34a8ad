#include "sim/qcow2_header_file.hpp"

#include <algorithm>
#include <cstring>
#include <span>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

namespace nbdelta::sim {

using namespace image::qcow2;

namespace {

template <class T>
std::string bytes_of(const T& structure) {
  return std::string(reinterpret_cast<const char*>(&structure), sizeof structure);
}

}  // namespace

Qcow2HeaderFile::Qcow2HeaderFile(const File& file) {
  file.read_exactly_at(std::as_writable_bytes(std::span(&header_, 1)), 0);
  if (header_.version != 3)
    fail(ENOTSUP, "{}: is of qcow2 version {} (compat=0.10); here it is 3", file.name(),
         std::uint32_t{header_.version});
  if (header_.incompatible_features != 0)
    fail(ENOTSUP, "{}: has incompatible features ({:#x}), which cannot be written here",
         file.name(), std::uint64_t{header_.incompatible_features});
  if (header_.nb_snapshots != 0)
    fail(ENOTSUP, "{}: has internal snapshots, which cannot be written to here", file.name());
  std::string cluster(std::min(cluster_size(), file.size()), '\0');
  file.read_exactly_at(std::as_writable_bytes(std::span(cluster)), 0);
  header_rest_ = cluster.substr(sizeof header_, header_.header_length - sizeof header_);
  read_extensions(file, cluster);
}

void Qcow2HeaderFile::read_extensions(const File& file, const std::string& cluster) {
  std::string backing_format;
  const std::size_t end = header_.backing_file_offset == 0
                              ? cluster.size()
                              : std::min<std::size_t>(cluster.size(), header_.backing_file_offset);
  for (std::size_t at = header_.header_length; at + sizeof(ExtensionHeader) <= end;) {
    ExtensionHeader head;
    std::memcpy(&head, cluster.data() + at, sizeof head);
    at += sizeof head;
    if (head.length > end - at)
      fail(EINVAL, "{}: a header extension of {} bytes at {} does not fit", file.name(),
           std::uint32_t{head.length}, at);
    std::string data = cluster.substr(at, head.length);
    at += round_up(head.length, 8);
    switch (static_cast<image::qcow2::Extension>(std::uint32_t{head.type})) {
      case image::qcow2::Extension::end:
        at = end;
        break;
      case image::qcow2::Extension::backing_format:
        backing_format = data;
        break;
      case image::qcow2::Extension::bitmaps:
        if ((header_.autoclear_features & kBitmapsValid) == 0)
          break;
        if (data.size() != sizeof(BitmapsExtension))
          fail(EINVAL, "{}: the bitmaps extension has {} bytes, and should have {}", file.name(),
               data.size(), sizeof(BitmapsExtension));
        std::memcpy(&bitmaps.emplace(), data.data(), sizeof(BitmapsExtension));
        break;
      default:
        others_.push_back({head.type, std::move(data)});
    }
  }
  if (header_.backing_file_offset != 0)
    backing = {cluster.substr(header_.backing_file_offset, header_.backing_file_size),
               backing_format};
}

void Qcow2HeaderFile::write(const File& file) {
  std::string extensions;
  const auto add = [&](std::uint32_t type, const std::string& data) {
    extensions += bytes_of(ExtensionHeader{type, static_cast<std::uint32_t>(data.size())});
    extensions += data;
    extensions.resize(round_up(extensions.size(), 8));
  };
  const auto type = [](image::qcow2::Extension of) { return static_cast<std::uint32_t>(of); };
  if (backing)
    add(type(image::qcow2::Extension::backing_format), backing->format);
  for (const Extension& other : others_)
    add(other.type, other.data);
  if (bitmaps)
    add(type(image::qcow2::Extension::bitmaps), bytes_of(*bitmaps));
  add(type(image::qcow2::Extension::end), "");
  header_.autoclear_features =
      (header_.autoclear_features & ~kBitmapsValid) | (bitmaps ? kBitmapsValid : 0);
  header_.backing_file_offset =
      backing ? std::uint64_t{header_.header_length} + extensions.size() : 0;
  header_.backing_file_size = backing ? static_cast<std::uint32_t>(backing->path.size()) : 0;

  std::string cluster =
      bytes_of(header_) + header_rest_ + extensions + (backing ? backing->path : "");
  if (cluster.size() > cluster_size() || (backing && backing->path.size() > kMaxBackingNameLength))
    fail(E2BIG, "{}: the header and its extensions do not fit the first cluster", file.name());
  cluster.resize(cluster_size());
  file.write_at(std::as_bytes(std::span(cluster)), 0);
}

}  // namespace nbdelta::sim
