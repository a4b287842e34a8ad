#include "sim/file_image.hpp"

#include "base/error.hpp"

namespace nbdelta::sim {

WriteNumber FileImage::read_granule(std::uint64_t offset, std::uint64_t granule) const {
  GranuleBytes bytes{};
  file_.read_at(bytes, offset);  // what is past the end reads zero: preallocated clusters
  return foreign_->number_of(bytes, granule);
}

void FileImage::write_granule(std::uint64_t offset, std::uint64_t granule, WriteNumber number) {
  GranuleBytes bytes;
  foreign_->fill(bytes, granule, number);
  file_.write_at(bytes, offset);
}

RawFileImage::RawFileImage(File image, ForeignGranules& foreign)
    : FileImage(std::move(image), foreign), granules_(file().size() / kFileGranule) {
  if (granules_ == 0 || file().size() % kFileGranule != 0)
    fail(EINVAL, "{}: its size, {} bytes, is no multiple of {}", file().name(), file().size(),
         kFileGranule);
}

void RawFileImage::resize(std::uint64_t granules) {
  file().resize(granules * kFileGranule);
  granules_ = granules;
}

std::uint64_t RawFileImage::allocated() const {
  return static_cast<std::uint64_t>(file().status().st_blocks) * 512;
}

void RawFileImage::set_backing(const BackingFile& /*backing*/) {
  fail(ENOTSUP, "{}: a raw image has no backing file", file().name());
}

void RawFileImage::set_bitmaps(std::vector<StoredBitmap> bitmaps) {
  invariant(bitmaps.empty(), "a raw image keeps no bitmaps");
}

}  // namespace nbdelta::sim
