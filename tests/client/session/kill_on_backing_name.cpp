// Loaded into QEMU (LD_PRELOAD): kills it right after it has written a qcow2 header that names
// $NBDELTA_KILL_ON_BACKING_NAME as the backing file, before anything else reaches an image.

#include <dlfcn.h>
#include <signal.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace {

std::uint64_t big_endian(const unsigned char* bytes, unsigned count) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < count; ++i)
    value = value << 8 | bytes[i];
  return value;
}

void kill_if_named(const void* data, std::size_t length, off_t offset) {
  static const char* const wanted = std::getenv("NBDELTA_KILL_ON_BACKING_NAME");
  const auto* bytes = static_cast<const unsigned char*>(data);
  if (wanted == nullptr || offset != 0 || length < 20)
    return;
  // docs/interop/qcow2.rst, "Header": the name's place and length are at 8 and 16.
  const std::uint64_t at = big_endian(bytes + 8, 8);
  const std::uint64_t size = big_endian(bytes + 16, 4);
  if (at >= length || size > length - at)
    return;
  if (std::string_view(reinterpret_cast<const char*>(bytes + at), size) == wanted)
    ::kill(::getpid(), SIGKILL);
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
  kill_if_named(data, length, offset);
  return written;
}

ssize_t pwritev64(int fd, const iovec* parts, int count, off64_t offset) {
  static auto* const real = next<decltype(pwritev64)>("pwritev64");
  const ssize_t written = real(fd, parts, count, offset);
  if (count > 0)
    kill_if_named(parts[0].iov_base, parts[0].iov_len, offset);
  return written;
}
}
