#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "client/target/new_file.hpp"
#include "client/target/target.hpp"
#include "image/disk.hpp"

namespace nbdelta::client::target {

struct TargetOptions {
  std::string name;  // "null:", an NBD URI, or a path
  bool force = false;
  bool apply = false;
  std::optional<image::Format> format;  // otherwise qcow2 where the name ends in .qcow2, else raw
  std::string base;                     // backing file of a new qcow2
  std::optional<image::Format> base_format;  // otherwise by the name of the base
  std::chrono::milliseconds timeout{60'000};
};

/// A combination of options that means nothing.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// Whether a target of this name is an NBD server.
bool is_nbd_uri(std::string_view name);

/// Throws TargetRefused where a file of the image that is read here would be written to, replaced
/// or removed, by any of its names.
void refuse_as_source(const TargetOptions& options,
                      const std::vector<image::Disk::OpenFile>& source);

/// The target that the options name. Nothing is made or written yet, but what can be refused
/// without knowing the source is. Throws UsageError or TargetRefused.
std::unique_ptr<Target> open_target(const TargetOptions& options);

}  // namespace nbdelta::client::target
