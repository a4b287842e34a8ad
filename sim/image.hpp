#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"

namespace nbdelta::sim {

/// What a granule holds is told by the number of the guest's write that put it there; 0 is zeros.
using WriteNumber = std::uint32_t;

/// What an image itself has of a granule, without its backing file.
enum class Held : std::uint8_t { nothing, zero, data };

/// A persistent bitmap as a qcow2 image keeps it (docs/interop/qcow2.rst, "Bitmaps extension"): one
/// bit a granule.
struct StoredBitmap {
  std::string name;
  bool recording = true;  // "auto"
  bool in_use = false;    // somebody had it open for writing, or died so
  std::vector<bool> bits;
};

struct BackingFile {
  std::string path;
  std::string format;
  bool operator==(const BackingFile&) const = default;
};

/// An image file, in granules: as a storage has it, and as the one who has it open for writing sees
/// it. For one thread.
class Image {
 public:
  virtual ~Image() = default;

  virtual std::string format() const = 0;  // "raw" or "qcow2"
  virtual std::uint64_t granules() const = 0;
  /// A larger disk; what is new holds nothing, or zeros where there is no such thing. Throws Error.
  virtual void resize(std::uint64_t granules) = 0;
  /// Granules that are allocated together; a power of two.
  virtual std::uint64_t cluster() const = 0;
  virtual std::uint64_t granule_size() const = 0;  // bytes

  virtual Held held(std::uint64_t granule) const = 0;
  /// Requires held() == data.
  virtual WriteNumber read(std::uint64_t granule) const = 0;
  /// A granule of a cluster that holds nothing: the caller writes the cluster's others too.
  /// Throws Error (ENOSPC).
  virtual void write(std::uint64_t granule, WriteNumber number) = 0;
  virtual void write_zero(std::uint64_t granule) = 0;
  /// What was written survives the writer's death only from here on: a qcow2 image's tables are
  /// kept in memory until then.
  virtual void flush() = 0;

  /// Bytes of the file.
  virtual std::uint64_t allocated() const = 0;
  virtual std::optional<BackingFile> backing() const = 0;
  virtual void set_backing(const BackingFile& backing) = 0;
  virtual const std::vector<StoredBitmap>& bitmaps() const = 0;
  virtual void set_bitmaps(std::vector<StoredBitmap> bitmaps) = 0;
};

/// Where QEMU's files are. `path`s are absolute.
class ImageHost {
 public:
  virtual ~ImageHost() = default;
  /// Throws Error with QEMU's words for what is wrong.
  virtual std::shared_ptr<Image> open(const std::string& path, const std::string& format) = 0;
  /// Takes the lock that others see, or gives it back. Returns false where somebody forbids it.
  virtual bool lock_for_writing(const std::string& path, bool locked) = 0;
  /// Whether somebody else, another node too, has it open, to write or to read what nobody writes
  /// to.
  virtual bool written_by_others(const std::string& /*path*/) { return false; }
  virtual bool read_by_others(const std::string& /*path*/) { return false; }
};

}  // namespace nbdelta::sim
