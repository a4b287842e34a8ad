#include "client/backup/real/files.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <span>

#include "base/arithmetic.hpp"
#include "base/file_identity.hpp"
#include "client/backup/options.hpp"
#include "image/chain.hpp"
#include "image/dirty_bitmap.hpp"
#include "image/image_lock.hpp"
#include "image/permitted_file.hpp"
#include "image/qcow2_header.hpp"
#include "image/qcow2_overlay.hpp"
#include "image/view.hpp"

namespace nbdelta::client::backup {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kLongestText = std::size_t{64} << 20;  // a journal or manifest has a few KiB
constexpr std::size_t kMostLayers = 256;                     // as in image/chain.cpp
constexpr std::uint64_t kOverlayCluster = 64 * kKiB;

class FileLock final : public Lock {
 public:
  explicit FileLock(File file) : file_(std::move(file)) {}

 private:
  File file_;  // flock(2) ends with it
};

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

class RealFiles final : public Files {
 public:
  void create_overlay(const std::string& path, std::uint64_t disk_size, const std::string& backing,
                      image::Format backing_format) override {
    const File file = File::open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    try {
      own_like(file, backing);
      image::ExtentMap map;
      map.append(disk_size, image::State::unchanged);
      const image::Qcow2Overlay overlay(file, map, kOverlayCluster,
                                        {.name = backing, .format = backing_format});
      overlay.write_tables();
      overlay.finish();
      sync_folder_of(path);
    } catch (const Error&) {
      ::unlink(path.c_str());
      throw;
    }
  }

  bool overlay_is_empty(const std::string& path) override {
    try {
      const image::Disk disk =
          image::Disk::open(path, {.permitted_folders = {}, .locking = image::Locking::off});
      bool empty = true;
      if (image::read_qcow2_header(File::open(path, O_RDONLY)).snapshots != 0)
        return false;
      image::View::layer(disk).for_each_extent(0, disk.size(), [&](const image::Extent& extent) {
        empty = extent.state == image::State::unchanged;
        return empty;
      });
      return empty;
    } catch (const Error&) {
      return false;
    }
  }

  std::optional<std::string> backing_of(const std::string& path) override {
    if (!exists(path))
      return std::nullopt;
    const File file = File::open(path, O_RDONLY);
    if (!image::has_qcow2_magic(file))
      return std::nullopt;
    const image::Qcow2Header header = image::read_qcow2_header(file);
    if (header.backing_name.empty())
      return std::nullopt;
    return canonical((fs::path(path).parent_path() / header.backing_name).string());
  }

  std::optional<Qcow2Summary> summary_of(const std::string& path) override {
    const File file = File::open(path, O_RDONLY);
    if (!image::has_qcow2_magic(file))
      return std::nullopt;
    const image::Qcow2Header header = image::read_qcow2_header(file);
    Qcow2Summary summary{.size = header.size,
                         .snapshots = header.snapshots,
                         .backing_format = header.backing_format,
                         .inconsistent_bitmaps = {}};
    if (header.bitmaps)
      for (const image::DirtyBitmap::Info& bitmap :
           image::read_bitmap_directory(file, *header.bitmaps, header.cluster_size()))
        if (bitmap.in_use)
          summary.inconsistent_bitmaps.push_back(bitmap.name);
    return summary;
  }

  void check_readable(const std::string& path) override {
    if (S_ISDIR(File::open(path, O_RDONLY).status().st_mode))
      fail(EISDIR, "{}: is a folder", path);
  }

  void check_servable(const std::string& path, image::Format format,
                      const std::vector<std::string>& backing) override {
    const image::Chain chain = image::open_chain(
        path, {.format = format, .permitted_folders = backing, .locking = image::Locking::off});
    if (!chain.missing_backing.empty())
      fail(ENOENT, "{}", chain.missing_backing);
  }

  std::size_t chain_length(const std::string& path) override {
    std::string image = path;
    for (std::size_t length = 1;; ++length) {
      const image::Qcow2Header header = image::read_qcow2_header(image::open_image_file(image, 0));
      if (header.backing_name.empty())
        return length;
      if (length == kMostLayers)
        fail(EMLINK, "{}: more than {} images lie below it", path, kMostLayers);
      // Without "..", which would pile up.
      image = canonical(image::resolve_backing_path(image, header.backing_name));
      if (header.backing_format != "qcow2") {
        image::open_image_file(image, 0);
        return length + 1;
      }
    }
  }

  void check_unused(const std::string& path) override {
    image::lock_image(File::open(path, O_RDWR), image::Access::write);
  }

  /// Whoever wrote it: fsync(2) is for the file, not for the descriptor.
  void sync(const std::string& path) override { File::open(path, O_RDONLY).sync(); }

  std::uint64_t allocated(const std::string& path) override {
    constexpr std::uint64_t kUnit = 512;  // stat(2), "st_blocks"
    return static_cast<std::uint64_t>(File::open(path, O_RDONLY).status().st_blocks) * kUnit;
  }

  std::int64_t modified(const std::string& path) override {
    const struct stat status = File::open(path, O_RDONLY).status();
    return S_ISBLK(status.st_mode) ? 0 : std::max<std::int64_t>(status.st_mtim.tv_sec, 1);
  }

  std::int64_t modified_below(const std::string& overlay) override {
    const image::Qcow2Header header = image::read_qcow2_header(File::open(overlay, O_RDONLY));
    const std::string base = image::resolve_backing_path(overlay, header.backing_name);
    const std::int64_t written = modified(base);
    if (header.backing_format != "qcow2")
      return written;
    const image::Qcow2Header below = image::read_qcow2_header(File::open(base, O_RDONLY));
    return below.external_data
               ? std::max(written,
                          modified(image::resolve_backing_path(base, below.data_file_name)))
               : written;
  }

  bool exists(const std::string& path) override {
    struct stat status {};
    if (::lstat(path.c_str(), &status) == 0)
      return true;
    if (errno != ENOENT && errno != ENOTDIR)
      fail_errno("{}: cannot be looked at", path);
    return false;
  }

  bool same(const std::string& path, const std::string& other) override {
    struct stat one {};
    struct stat two {};
    return ::stat(path.c_str(), &one) == 0 && ::stat(other.c_str(), &two) == 0 &&
           FileIdentity(one) == FileIdentity(two);
  }

  std::optional<std::string> read_text(const std::string& path) override {
    try {
      const File file = File::open(path, O_RDONLY);
      const std::uint64_t size = file.size();
      if (size > kLongestText)
        fail(EFBIG, "{}: has {} bytes, which is too much", path, size);
      std::string text(size, '\0');
      text.resize(file.read_at(std::as_writable_bytes(std::span(text)), 0));
      return text;
    } catch (const Error& error) {
      if (error.error_number() == ENOENT || error.error_number() == ENOTDIR)
        return std::nullopt;
      throw;
    }
  }

  void write_text(const std::string& path, const std::string& text) override {
    const std::string partial = partial_of(path);
    {
      const File file = File::open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0644);
      file.write_at(bytes_of(text), 0);
      file.sync();
    }
    rename(partial, path);
  }

  void touch(const std::string& path) override { ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0); }

  void rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0)
      fail_errno("{}: cannot be renamed to {}", from, to);
    sync_folder_of(to);
  }

  std::vector<std::string> list(const std::string& folder) override {
    std::vector<std::string> names;
    std::error_code error;
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
      names.push_back(it->path().filename().string());
    if (error && error != std::errc::no_such_file_or_directory &&
        error != std::errc::not_a_directory)
      fail(error.value(), "{}: cannot be listed: {}", folder, error.message());
    std::sort(names.begin(), names.end());
    return names;
  }

  void make_folder(const std::string& path) override {
    std::error_code error;
    fs::create_directories(path, error);
    if (error)
      fail(error.value(), "{}: cannot be made: {}", path, error.message());
    sync_folder_of(path);
  }

  void remove_folder(const std::string& path) override {
    std::error_code error;
    fs::remove_all(path, error);
    if (error)
      fail(error.value(), "{}: cannot be removed: {}", path, error.message());
    sync_folder_of(path);
  }

  void remove(const std::string& path) override {
    bool removed = false;
    // And what a write_text() that was killed has left.
    for (const std::string& name : {path, partial_of(path)}) {
      if (::unlink(name.c_str()) == 0)
        removed = true;
      else if (errno != ENOENT && errno != ENAMETOOLONG)
        fail_errno("{}: cannot be removed", name);
    }
    if (removed)
      sync_folder_of(path);
  }

  std::string canonical(const std::string& path) override {
    std::error_code error;
    const fs::path found = fs::weakly_canonical(path, error);
    return error ? path : found.string();
  }

  std::uint64_t free_space(const std::string& folder) override {
    struct statvfs space {};
    if (::statvfs(folder.c_str(), &space) != 0)
      fail_errno("{}: cannot ask for the free space", folder);
    return std::uint64_t{space.f_bavail} * space.f_frsize;
  }

  std::unique_ptr<Lock> lock(const std::string& path) override {
    File file = File::open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0644);
    if (::flock(file.fd(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK)
        fail_errno("{}: cannot be locked", path);
      std::string holder = read_text(path).value_or("");
      refuse(EAGAIN, "{}: another nbdelta is at work here{}", path,
             holder.empty() ? "" : " (process " + holder + ")");
    }
    file.resize(0);
    file.write_at(bytes_of(std::to_string(::getpid())), 0);
    return std::make_unique<FileLock>(std::move(file));
  }

 private:
  static std::string partial_of(const std::string& path) { return path + ".partial"; }

  /// QEMU must be able to open the overlay, whoever it runs as.
  static void own_like(const File& file, const std::string& backing) {
    struct stat status {};
    const fs::path base = fs::path(file.name()).parent_path() / fs::path(backing).filename();
    if (::stat(base.c_str(), &status) != 0 && ::stat(backing.c_str(), &status) != 0)
      return;
    if (::fchown(file.fd(), status.st_uid, status.st_gid) != 0 ||
        ::fchmod(file.fd(), S_ISREG(status.st_mode) ? status.st_mode & 0777 : 0600) != 0)
      fail_errno("{}: cannot be given the owner of {}", file.name(), backing);
  }
};

}  // namespace

std::unique_ptr<Files> real_files() {
  return std::make_unique<RealFiles>();
}

}  // namespace nbdelta::client::backup
