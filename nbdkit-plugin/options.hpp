#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/arithmetic.hpp"
#include "image/disk.hpp"

namespace nbdelta::plugin {

/// The plugin's parameters, as `key=value` on nbdkit's command line.
struct Options {
  std::string image;  // absolute
  image::OpenOptions open;
  std::string map;                      // NBD URI, or a file's absolute path; empty: none
  std::string map_context;              // for `map`; empty: not given
  std::uint64_t readahead = 16 * kMiB;  // bytes of data to announce ahead; 0: none. bench/README.md

  bool packed = false;  // packed exports are served too

  /// Takes one parameter. Throws Error (EINVAL) for an unknown key or a bad value.
  void set(std::string_view key, const std::string& value);

  /// Once all were taken: throws Error where something is missing or contradicts.
  void check() const;

  bool map_is_uri() const { return map.find("://") != std::string::npos; }

  /// One line a parameter, for `nbdkit delta --help`.
  static const char* help();
};

}  // namespace nbdelta::plugin
