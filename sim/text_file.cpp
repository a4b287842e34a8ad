#include "sim/text_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>

#include "base/error.hpp"
#include "base/file.hpp"
#include "base/units.hpp"

namespace nbdelta::sim {

std::string read_text_file(const std::string& path, std::uint64_t most) {
  const File file = File::open(path, O_RDONLY);
  std::string text;
  std::array<char, 65536> buffer;
  while (true) {
    const ssize_t count = ::read(file.fd(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR)
      continue;
    if (count < 0)
      fail_errno("{}: cannot be read", path);
    if (count == 0)
      return text;
    text.append(buffer.data(), static_cast<std::size_t>(count));
    if (text.size() > most)
      fail(EFBIG, "{}: is longer than {}", path, format_size(most));
  }
}

}  // namespace nbdelta::sim
