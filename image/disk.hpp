#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "image/extent.hpp"
#include "image/layer.hpp"

namespace nbdelta::image {

class Qcow2Layer;

/// The format of an image is told, never probed: a guest chooses the bytes of a raw image.
enum class Format : std::uint8_t { qcow2, raw };

/// Throws Error (EINVAL) that names `what`.
Format parse_format(std::string_view name, std::string_view what);

enum class Locking : std::uint8_t { on, off };
enum class Caching : std::uint8_t { page_cache, direct };

struct OpenOptions {
  Format format = Format::qcow2;
  /// Folders that backing and external data files may be opened from, at any depth.
  std::vector<std::string> permitted_folders;
  Locking locking = Locking::on;
  Caching caching = Caching::page_cache;
};

/// A virtual disk: a chain of layers, opened read-only. Constant after it was opened; every
/// function is safe to call from several threads. The caches of one Disk, all layers together,
/// take at most kCacheMemory bytes whatever the images' sizes.
class Disk {
 public:
  static constexpr std::size_t kMetadataCacheMemory = std::size_t{24} << 20;
  static constexpr std::size_t kDecompressedCacheMemory = std::size_t{24} << 20;
  static constexpr std::size_t kCacheMemory = kMetadataCacheMemory + kDecompressedCacheMemory;

  /// Opens the image and, as far as it is permitted, the files behind it. A backing file outside
  /// the permitted folders is no error here: see missing_backing(). Throws Error for everything
  /// else that is wrong.
  static Disk open(const std::string& path, const OpenOptions& options);

  Disk(Disk&&) noexcept;
  Disk& operator=(Disk&&) noexcept;
  ~Disk();

  /// Virtual size, bytes.
  std::uint64_t size() const;
  /// As it was opened, for messages.
  const std::string& name() const;

  /// Changes where anybody writes to one of the files that are open, or others are opened: a digest
  /// of their inode numbers, lengths and times of modification. Of block devices only their numbers
  /// are in it, so what is written to those does not show.
  std::uint64_t state() const { return state_; }

  /// A file or block device of the chain: a layer's image, or its external data file.
  struct OpenFile {
    std::string name;
    struct stat status;
  };
  /// All that are open.
  const std::vector<OpenFile>& files() const { return files_; }

  /// Empty where all layers are open; otherwise why the one below the last is not, and what to do.
  const std::string& missing_backing() const;

  /// One that is open; 0 is the image itself.
  const Layer& layer(std::size_t depth) const { return *layers_[depth]; }
  /// The image itself where it is qcow2, else null.
  const Qcow2Layer* qcow2() const;

  /// Reads the disk. Requires offset + out.size() <= size(). Throws Error; also where the bytes are
  /// in a backing file that is not open.
  void read(std::span<std::byte> out, std::uint64_t offset) const;

  /// What somebody who goes on through the disk keeps of its tables, for calls whose offsets
  /// ascend.
  using Walk = std::vector<LayerWalk>;
  /// `known`: of the image itself, not looked up again; must outlive the walk.
  Walk new_walk(const KnownRuns* known = nullptr) const;

  /// The same for a walk, past the cache of tables.
  void read(std::span<std::byte> out, std::uint64_t offset, Walk& walk) const;

  /// Allocation through the chain: data, zero, or hole where no layer says anything.
  /// Requires missing_backing() to be empty and offset + length <= size().
  void for_each_extent(std::uint64_t offset, std::uint64_t length, const ExtentSink& sink) const;
  void for_each_extent(std::uint64_t offset, std::uint64_t length, Walk& walk,
                       const ExtentSink& sink) const;

  /// Where bytes of the disk stand as they are in one of its files.
  struct Place {
    const File* file = nullptr;  // null: nowhere; they are zeros, or compressed
    HostOffset host_offset{};
    std::uint64_t length = 0;  // of which that is so; 1 to `limit`
  };

  /// Of the bytes at `offset`. Requires limit > 0, offset + limit <= size(). Throws Error as read()
  /// does.
  Place place_at(std::uint64_t offset, std::uint64_t limit, Walk& walk) const;

  /// Whether all of it is: announcing would be in vain.
  bool is_in_memory() const { return in_memory_; }

  /// Tells the kernel that [offset, offset + length) will be read soon. Throws Error where a table
  /// that leads there is damaged or cannot be read.
  void will_need(std::uint64_t offset, std::uint64_t length, Walk& walk) const;

 private:
  class Caches;
  Disk();
  bool walk(std::size_t depth, std::uint64_t offset, std::uint64_t length, Walk& walks,
            const ExtentSink& sink) const;
  void will_need_of_layer(std::size_t depth, std::uint64_t offset, std::uint64_t end,
                          Walk& walk) const;
  /// `run_at(depth, offset, limit)` finds what to read.
  template <class RunAt>
  void read_layer(std::size_t depth, std::span<std::byte> out, std::uint64_t offset,
                  const RunAt& run_at) const;

  std::unique_ptr<Caches> caches_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::vector<OpenFile> files_;
  std::string missing_backing_;
  std::uint64_t state_ = 0;
  bool in_memory_ = false;
};

}  // namespace nbdelta::image
