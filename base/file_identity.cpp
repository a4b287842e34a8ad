#include "base/file_identity.hpp"

#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <fstream>
#include <string>

namespace nbdelta {

FileIdentity::FileIdentity(const struct stat& status)
    : device(S_ISBLK(status.st_mode) ? status.st_rdev : status.st_dev),
      inode(S_ISBLK(status.st_mode) ? 0 : status.st_ino) {}

std::optional<FileIdentity> file_of_loop_device(const struct stat& device) {
  if (!S_ISBLK(device.st_mode))
    return std::nullopt;
  const auto line_of = [&](const char* attribute) {  // sysfs; a partition has no such folder
    std::ifstream file(fmt::format("/sys/dev/block/{}:{}/loop/{}", major(device.st_rdev),
                                   minor(device.st_rdev), attribute));
    std::string line;
    std::getline(file, line);
    return line;
  };
  struct stat file {};
  if (line_of("offset") != "0" || line_of("sizelimit") != "0" ||
      ::stat(line_of("backing_file").c_str(), &file) != 0)
    return std::nullopt;
  return FileIdentity(file);
}

}  // namespace nbdelta
