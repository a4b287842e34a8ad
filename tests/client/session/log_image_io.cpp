// Loaded into QEMU (LD_PRELOAD): appends to $NBDELTA_LOG_IMAGE_IO a line for each write to a file
// ("header PATH" at its beginning, "data PATH" elsewhere) and each "sync PATH", when it has been
// done.

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

void log(const char* what, int fd) {
  static const int file = [] {
    const char* const path = std::getenv("NBDELTA_LOG_IMAGE_IO");
    return path == nullptr ? -1 : ::open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  }();
  char path[4096];
  const ssize_t length =
      ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof(path));
  if (file == -1 || length <= 0)
    return;
  const std::string line =
      std::string(what) + " " + std::string(path, static_cast<std::size_t>(length)) + "\n";
  if (::write(file, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
    ::abort();
}

const char* place_of(off_t offset) {
  return offset == 0 ? "header" : "data";
}

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t pwrite64(int fd, const void* data, size_t length, off64_t offset) {
  static auto* const real = next<decltype(pwrite64)>("pwrite64");
  const ssize_t written = real(fd, data, length, offset);
  log(place_of(offset), fd);
  return written;
}

ssize_t pwritev64(int fd, const iovec* parts, int count, off64_t offset) {
  static auto* const real = next<decltype(pwritev64)>("pwritev64");
  const ssize_t written = real(fd, parts, count, offset);
  log(place_of(offset), fd);
  return written;
}

int fdatasync(int fd) {
  static auto* const real = next<decltype(fdatasync)>("fdatasync");
  const int result = real(fd);
  log("sync", fd);
  return result;
}
}
