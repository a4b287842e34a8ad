// Copies extents from one file to another with nothing but pread(2) and pwrite(2), one after the
// other through one buffer: what a simple program does that knows where all of it lies.
//
//   extents-copy EXTENTS SOURCE TARGET DISK_SIZE
//
// EXTENTS holds (offset in SOURCE, offset in TARGET, length) as native 64-bit numbers. TARGET is
// made anew, sparse, of DISK_SIZE bytes.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr std::size_t kBuffer = 256 * 1024;  // fits the second level cache; longer was slower

struct Extent {
  std::uint64_t source;
  std::uint64_t target;
  std::uint64_t length;
};

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

int open_file(const char* name, int flags) {
  const int descriptor = ::open(name, flags | O_CLOEXEC, 0644);
  if (descriptor < 0)
    die(name);
  return descriptor;
}

std::vector<Extent> read_extents(const char* name) {
  const int descriptor = open_file(name, O_RDONLY);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0)
    die(name);
  std::vector<Extent> extents(static_cast<std::size_t>(status.st_size) / sizeof(Extent));
  auto* to = reinterpret_cast<char*>(extents.data());
  for (std::size_t done = 0; done < extents.size() * sizeof(Extent);) {
    const ssize_t got = ::read(descriptor, to + done, extents.size() * sizeof(Extent) - done);
    if (got <= 0)
      die(name);
    done += static_cast<std::size_t>(got);
  }
  ::close(descriptor);
  return extents;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: extents-copy EXTENTS SOURCE TARGET DISK_SIZE\n");
    return 2;
  }
  const std::vector<Extent> extents = read_extents(argv[1]);
  const int source = open_file(argv[2], O_RDONLY);
  const int target = open_file(argv[3], O_RDWR | O_CREAT | O_TRUNC);
  if (::ftruncate(target, static_cast<off_t>(std::strtoull(argv[4], nullptr, 10))) != 0)
    die(argv[3]);
  std::vector<char> buffer(kBuffer);
  for (Extent extent : extents) {
    while (extent.length > 0) {
      const std::size_t size = std::min<std::uint64_t>(extent.length, buffer.size());
      const ssize_t got = ::pread(source, buffer.data(), size, static_cast<off_t>(extent.source));
      if (got <= 0)
        die(argv[2]);
      const auto bytes = static_cast<std::size_t>(got);
      if (::pwrite(target, buffer.data(), bytes, static_cast<off_t>(extent.target)) != got)
        die(argv[3]);
      extent.source += bytes;
      extent.target += bytes;
      extent.length -= bytes;
    }
  }
  return 0;
}
