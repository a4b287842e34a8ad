#include "image/chain.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "base/error.hpp"
#include "base/file_identity.hpp"
#include "image/image_lock.hpp"
#include "image/permitted_file.hpp"
#include "image/unfinished_mark.hpp"

namespace nbdelta::image {
namespace {

/// QEMU has no limit of its own; a chain of this length takes it seconds to open.
constexpr std::size_t kMostLayers = 256;

class ChainOpener {
 public:
  explicit ChainOpener(const OpenOptions& options) : options_(options) {}

  Chain open(const std::string& path) {
    add_layer(open_image_file(path, 0), options_.format);
    while (chain_.missing_backing.empty() && add_backing())
      continue;
    return std::move(chain_);
  }

 private:
  void lock(const File& file) const {
    if (options_.locking == Locking::on)
      lock_image(file, Access::read);
  }

  static void refuse_unfinished(const std::string& image) {
    std::error_code error;
    const std::filesystem::path real = std::filesystem::canonical(image, error);
    const std::string mark = unfinished_mark_of(error ? image : real.string());
    if (std::filesystem::exists(mark, error))
      fail(ESTALE, "{}: a pull into it was not finished (see {}): finish it first", image, mark);
  }

  void add_layer(File file, Format format) {
    lock(file);
    refuse_unfinished(file.name());  // whoever applied to it held the lock until it was marked
    LayerFiles layer;
    layer.image = std::move(file);
    if (format == Format::qcow2)
      layer.header = read_qcow2_header(layer.image);
    if (layer.header && layer.header->external_data)
      layer.data = open_data_file(layer);
    else if (options_.caching == Caching::direct)
      layer.data = reopen_direct(layer.image);
    chain_.layers.push_back(std::move(layer));
  }

  /// The same open file must be meant, whatever became of its name.
  static File reopen_direct(const File& file) {
    const std::string path = fmt::format("/proc/self/fd/{}", file.fd());
    FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
    if (!fd)
      fail_errno("{}: cannot open with O_DIRECT (direct=on)", file.name());
    return File(std::move(fd), file.name());
  }

  File open_data_file(const LayerFiles& layer) const {
    const std::string& image = layer.image.name();
    const std::string& name = layer.header->data_file_name;
    auto [file, outside] = open_permitted_file(image, name, options_.permitted_folders, 0);
    if (!file)
      fail(EACCES, "{}: {}", image,
           not_permitted("external data file", resolve_backing_path(image, name), outside));
    lock(*file);
    return options_.caching == Caching::direct ? reopen_locked_direct(std::move(*file))
                                               : std::move(*file);
  }

  /// Locks end with their descriptor: the one that holds them must live on.
  File reopen_locked_direct(File file) const {
    File direct = reopen_direct(file);
    lock(direct);
    return direct;
  }

  std::string not_permitted(std::string_view what, const std::string& path,
                            const std::string& outside) const {
    const std::filesystem::path place(outside);
    if (!options_.permitted_folders.empty() &&
        std::find(place.begin(), place.end(), "..") != place.end())
      return fmt::format("its {} '{}' is not in a permitted folder (see backing=)", what, path);
    return fmt::format("its {} '{}' is not in a permitted folder; backing={} would permit it", what,
                       path, place.parent_path().string());
  }

  /// Returns whether there was one to add.
  bool add_backing() {
    const LayerFiles& top = chain_.layers.back();
    if (!top.header || top.header->backing_name.empty())
      return false;
    const std::string image = top.image.name();
    if (chain_.layers.size() == kMostLayers)
      fail(EMLINK, "{}: the backing chain has more than {} layers", image, kMostLayers);
    const std::string& name = top.header->backing_name;
    auto [file, outside] = open_permitted_file(image, name, options_.permitted_folders, 0);
    if (!file) {
      chain_.missing_backing =
          image + ": " + not_permitted("backing file", resolve_backing_path(image, name), outside);
      return false;
    }
    refuse_loop(*file, image);
    add_layer(std::move(*file), backing_format(*top.header, image));
    return true;
  }

  static Format backing_format(const Qcow2Header& header, const std::string& image) {
    if (header.backing_format.empty())
      fail(
          EINVAL,
          "{}: does not record the format of its backing file '{}', and formats are never guessed; "
          "'qemu-img rebase -u -b BACKING -F FORMAT IMAGE' records it",
          image, header.backing_name);
    return parse_format(header.backing_format, image + ": backing file format");
  }

  void refuse_loop(const File& file, const std::string& image) const {
    const FileIdentity wanted(file.status());
    for (const LayerFiles& layer : chain_.layers) {
      if (FileIdentity(layer.image.status()) == wanted)
        fail(ELOOP, "{}: the backing chain loops: its backing file {} is in the chain already",
             image, file.name());
    }
  }

  const OpenOptions& options_;
  Chain chain_;
};

}  // namespace

Chain open_chain(const std::string& path, const OpenOptions& options) {
  return ChainOpener(options).open(path);
}

}  // namespace nbdelta::image
