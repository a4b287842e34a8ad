#include "sim/file_host.hpp"

#include <fcntl.h>

#include <cerrno>
#include <cstring>

#include "base/error.hpp"
#include "image/image_lock.hpp"
#include "sim/qcow2_file_image.hpp"

namespace nbdelta::sim {
namespace {

File open_file(const std::string& path) {
  FileDescriptor fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd && (errno == EACCES || errno == EROFS))
    fd = FileDescriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    const int error = errno;
    fail(error, "Could not open '{}': {}", path,
         std::strerror(error));  // NOLINT(concurrency-mt-unsafe): glibc's is safe
  }
  return {std::move(fd), path};
}

}  // namespace

std::shared_ptr<Image> FileHost::open(const std::string& path, const std::string& format) {
  if (const auto image = open_[path].lock(); image && image->format() == format)
    return image;
  std::shared_ptr<FileImage> image;
  if (format == "raw")
    image = std::make_shared<RawFileImage>(open_file(path), foreign_);
  else
    image = std::make_shared<Qcow2FileImage>(open_file(path), foreign_);
  open_[path] = image;
  writers_.erase(path);
  try {
    image::lock_image(image->file(), image::Access::read);
  } catch (const Error&) {
    writers_.insert(path);
  }
  return image;
}

bool FileHost::lock_for_writing(const std::string& path, bool locked) {
  const auto image = open_[path].lock();
  invariant(image != nullptr, "who writes to an image has it open");
  if (!locked) {
    image::stop_writing(image->file());
    writers_.erase(path);
    return true;
  }
  if (image.use_count() > 2)  // of another node, which relies on nobody writing
    return false;
  try {
    image::lock_image(image->file(), image::Access::write);
  } catch (const Error&) {
    image::stop_writing(image->file());
    return false;
  }
  writers_.insert(path);
  return true;
}

bool FileHost::written_by_others(const std::string& path) {
  return writers_.count(path) != 0;
}

bool FileHost::read_by_others(const std::string& path) {
  const auto image = open_[path].lock();
  return image != nullptr && image::is_read_by_others(image->file());
}

}  // namespace nbdelta::sim
