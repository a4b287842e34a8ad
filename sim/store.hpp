#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "sim/image.hpp"

namespace nbdelta::sim {

/// An image in memory. What a qcow2 image's writer has not flushed is lost when it dies, but for
/// data that goes where data is already.
class MemoryImage final : public Image {
 public:
  /// `now` gives the times of its changes.
  MemoryImage(std::string format, std::uint64_t granules, const std::int64_t& now)
      : modified(now),
        format_(std::move(format)),
        held_(granules, format_ == "raw" ? Held::data : Held::nothing),
        numbers_(granules),
        now_(&now) {}

  std::string format() const override { return format_; }
  std::uint64_t granules() const override { return held_.size(); }
  std::uint64_t cluster() const override { return 1; }
  std::uint64_t granule_size() const override { return kGranule; }
  Held held(std::uint64_t granule) const override { return held_[granule]; }
  WriteNumber read(std::uint64_t granule) const override { return numbers_[granule]; }
  void write(std::uint64_t granule, WriteNumber number) override;
  void write_zero(std::uint64_t granule) override;
  void flush() override { unflushed_.clear(); }
  std::uint64_t allocated() const override { return data_ * kGranule; }
  std::optional<BackingFile> backing() const override { return backing_; }
  void set_backing(const BackingFile& backing) override {
    backing_ = backing;
    modified = *now_;
  }
  const std::vector<StoredBitmap>& bitmaps() const override { return bitmaps_; }
  void set_bitmaps(std::vector<StoredBitmap> bitmaps) override { bitmaps_ = std::move(bitmaps); }

  /// Its writer has died.
  void lose_unflushed();
  bool is_empty() const;
  void resize(std::uint64_t granules) override;

  static constexpr std::uint64_t kGranule = 65536;

  std::int64_t modified;  // seconds since 1970
  bool writer = false;    // QEMU's lock
  unsigned readers = 0;   // plugins', who forbid one
  bool full = false;      // its storage takes no more data

 private:
  struct Before {
    std::uint64_t granule;
    Held held;
    WriteNumber number;
  };
  void take_room(std::uint64_t granule);

  std::string format_;
  std::vector<Held> held_;
  std::vector<WriteNumber> numbers_;
  std::uint64_t data_ = 0;
  std::vector<Before> unflushed_;
  std::optional<BackingFile> backing_;
  std::vector<StoredBitmap> bitmaps_;
  const std::int64_t* now_;
};

/// A file: text, or an image.
struct StoredFile {
  std::string text;
  std::shared_ptr<MemoryImage> image;
};

/// The storage that all processes share.
class Store final : public ImageHost {
 public:
  std::shared_ptr<Image> open(const std::string& path, const std::string& format) override;
  bool lock_for_writing(const std::string& path, bool locked) override;
  bool written_by_others(const std::string& path) override;
  bool read_by_others(const std::string& path) override;

  MemoryImage& create_image(const std::string& path, const std::string& format,
                            std::uint64_t granules);
  /// Null where there is none.
  MemoryImage* image(const std::string& path) const;
  std::map<std::string, StoredFile>& files() { return files_; }
  const std::map<std::string, StoredFile>& files() const { return files_; }
  std::set<std::string>& folders() { return folders_; }
  std::int64_t now = 1'700'000'000;  // seconds since 1970

 private:
  std::map<std::string, StoredFile> files_;
  std::set<std::string> folders_;
};

}  // namespace nbdelta::sim
