#include "tests/support/page_cache.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "base/file.hpp"

namespace nbdelta::testing {

bool drop_from_page_cache(const std::string& path) {
  const File file = File::open(path, O_RDONLY);
  file.sync();
  (void)::posix_fadvise(file.fd(), 0, 0, POSIX_FADV_DONTNEED);
  return cached_bytes(path) == 0;
}

std::uint64_t cached_bytes(const std::string& path, std::uint64_t offset, std::uint64_t length) {
  const File file = File::open(path, O_RDONLY);
  void* const mapped =
      ::mmap(nullptr, length, PROT_READ, MAP_SHARED, file.fd(), static_cast<off_t>(offset));
  if (mapped == MAP_FAILED)  // NOLINT: a macro of the C library
    fail_errno("{}: mmap", path);
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages(div_round_up(length, page));
  const int result = ::mincore(mapped, length, pages.data());
  ::munmap(mapped, length);
  invariant(result == 0, "what is mapped can be asked for");
  return page * static_cast<std::uint64_t>(std::count_if(
                    pages.begin(), pages.end(), [](unsigned char bits) { return bits & 1U; }));
}

std::uint64_t cached_bytes(const std::string& path) {
  const std::uint64_t size = File::open(path, O_RDONLY).size();
  return size == 0 ? 0 : cached_bytes(path, 0, size);
}

}  // namespace nbdelta::testing
