#include "client/backup/paths.hpp"

#include "base/error.hpp"

namespace nbdelta::client::backup {
namespace {

/// "" for the root: what is below it begins with a slash all the same.
std::string without_slash(std::string path) {
  while (path.ends_with('/'))
    path.pop_back();
  return path;
}

bool is_below(const std::string& path, const std::string& folder) {
  return path.starts_with(folder) && (path.size() == folder.size() || path[folder.size()] == '/');
}

}  // namespace

std::pair<std::string, std::string> Paths::parse_rule(const std::string& text) {
  const std::size_t sign = text.find('=');
  if (sign == std::string::npos || sign == 0 || sign + 1 == text.size())
    fail(EINVAL, "--path {}: expected QEMU=LOCAL, as in /var/lib/images=/mnt/nas/images", text);
  return {without_slash(text.substr(0, sign)), without_slash(text.substr(sign + 1))};
}

std::string Paths::to_local(const std::string& qemu) const {
  for (const auto& [from, to] : rules_)
    if (is_below(qemu, from))
      return to + qemu.substr(from.size());
  return qemu;
}

std::string Paths::to_qemu(const std::string& local) const {
  for (const auto& [to, from] : rules_)
    if (is_below(local, from))
      return to + local.substr(from.size());
  return local;
}

}  // namespace nbdelta::client::backup
