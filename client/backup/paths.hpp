#pragma once

#include <string>
#include <utility>
#include <vector>

namespace nbdelta::client::backup {

/// Maps the paths that QEMU knows to those of this machine (`--path QEMU=LOCAL`) and back. The
/// first rule whose side is the path, or a folder above it, applies; without one both are the same.
class Paths {
 public:
  Paths() = default;
  explicit Paths(std::vector<std::pair<std::string, std::string>> rules)
      : rules_(std::move(rules)) {}

  /// From "QEMU=LOCAL". Throws Error (EINVAL).
  static std::pair<std::string, std::string> parse_rule(const std::string& text);

  std::string to_local(const std::string& qemu) const;
  std::string to_qemu(const std::string& local) const;

 private:
  std::vector<std::pair<std::string, std::string>> rules_;
};

}  // namespace nbdelta::client::backup
