#include "tests/client/session/processes.hpp"

#include <signal.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace nbdelta::testing {

std::string text_of_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<pid_t> children_of(pid_t parent, const std::string& name) {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string number = entry.path().filename();
    if (number.find_first_not_of("0123456789") != std::string::npos)
      continue;
    const std::string stat = text_of_file(entry.path() / "stat");
    const std::size_t end = stat.rfind(')');
    if (end == std::string::npos || stat.size() < end + 4)
      continue;
    if (std::atoi(stat.c_str() + end + 4) == parent && stat.find(name) < end)
      found.push_back(std::atoi(number.c_str()));
  }
  return found;
}

void kill_servers_of(const std::string& folder) {
  bool found = true;
  while (found) {
    found = false;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const std::string command = text_of_file(entry.path() / "cmdline");
      if (!command.starts_with("nbdkit") || command.find(folder) == std::string::npos)
        continue;
      ::kill(std::atoi(entry.path().filename().c_str()), SIGKILL);
      found = true;
    }
  }
}

}  // namespace nbdelta::testing
