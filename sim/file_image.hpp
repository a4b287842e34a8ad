#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/file.hpp"
#include "sim/image.hpp"
#include "sim/stamp.hpp"

namespace nbdelta::sim {

/// An image in a real file, opened for reading and writing; its granules have 4 KiB. For one
/// thread. All functions throw Error where the file cannot be read or written.
class FileImage : public Image {
 public:
  /// `foreign` must outlive the image.
  FileImage(File file, ForeignGranules& foreign) : file_(std::move(file)), foreign_(&foreign) {}

  std::uint64_t granule_size() const override { return kFileGranule; }
  const File& file() const { return file_; }

 protected:
  WriteNumber read_granule(std::uint64_t offset, std::uint64_t granule) const;
  void write_granule(std::uint64_t offset, std::uint64_t granule, WriteNumber number);

 private:
  File file_;
  ForeignGranules* foreign_;
};

/// The file is the disk.
class RawFileImage final : public FileImage {
 public:
  /// Throws Error where the file is no whole number of granules.
  RawFileImage(File file, ForeignGranules& foreign);

  std::string format() const override { return "raw"; }
  std::uint64_t granules() const override { return granules_; }
  void resize(std::uint64_t granules) override;
  std::uint64_t cluster() const override { return 1; }
  Held held(std::uint64_t /*granule*/) const override { return Held::data; }
  WriteNumber read(std::uint64_t granule) const override {
    return read_granule(granule * kFileGranule, granule);
  }
  void write(std::uint64_t granule, WriteNumber number) override {
    write_granule(granule * kFileGranule, granule, number);
  }
  void write_zero(std::uint64_t granule) override { write(granule, 0); }
  void flush() override {}
  std::uint64_t allocated() const override;
  std::optional<BackingFile> backing() const override { return std::nullopt; }
  /// There is no place for it: Error (ENOTSUP).
  void set_backing(const BackingFile& backing) override;
  const std::vector<StoredBitmap>& bitmaps() const override { return bitmaps_; }
  void set_bitmaps(std::vector<StoredBitmap> bitmaps) override;

 private:
  std::uint64_t granules_;
  std::vector<StoredBitmap> bitmaps_;
};

}  // namespace nbdelta::sim
