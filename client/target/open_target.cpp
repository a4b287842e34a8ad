#include "client/target/open_target.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <string_view>

#include "base/file_identity.hpp"
#include "client/target/apply_target.hpp"
#include "client/target/file_names.hpp"
#include "client/target/nbd_target.hpp"
#include "client/target/new_file.hpp"
#include "client/target/null_target.hpp"
#include "client/target/qcow2_target.hpp"
#include "client/target/raw_target.hpp"
#include "image/unfinished_mark.hpp"

namespace nbdelta::client::target {
namespace {

using image::Format;

// NBD URI specification, "NBD URI scheme".
constexpr std::array<std::string_view, 6> kNbdSchemes{
    "nbd://", "nbds://", "nbd+unix://", "nbds+unix://", "nbd+vsock://", "nbds+vsock://"};

template <class... Args>
[[noreturn]] void misuse(fmt::format_string<Args...> format, Args&&... args) {
  throw UsageError(EINVAL, fmt::format(format, std::forward<Args>(args)...));
}

bool is_block_device(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode);
}

/// Whether what is written to one changes the other.
bool share_bytes(const struct stat& one, const struct stat& other) {
  const std::optional<FileIdentity> below_one = file_of_loop_device(one);
  const std::optional<FileIdentity> below_other = file_of_loop_device(other);
  return FileIdentity(one) == FileIdentity(other) || below_one == FileIdentity(other) ||
         below_other == FileIdentity(one) || (below_one && below_one == below_other);
}

Format format_of(const TargetOptions& options) {
  if (options.format)
    return *options.format;
  return std::string_view(options.name).ends_with(".qcow2") ? Format::qcow2 : Format::raw;
}

/// Never by the contents: a guest chooses the bytes of a raw image.
Format base_format(const TargetOptions& options) {
  if (options.base_format)
    return *options.base_format;
  const std::string_view base = options.base;
  if (base.ends_with(".qcow2"))
    return Format::qcow2;
  if (base.ends_with(".raw") || base.ends_with(".img"))
    return Format::raw;
  misuse("--base {}: its name does not tell the format; add --base-format qcow2 or raw", base);
}

void check_combination(const TargetOptions& options, bool is_qcow2) {
  if (options.apply && is_qcow2)
    misuse(
        "{}: --apply writes into raw images and block devices; for qcow2 pull into a new file "
        "with --base {}",
        options.name, options.name);
  if (!options.base.empty() && !is_qcow2)
    misuse("--base is for a new qcow2 target, and {} is none", options.name);
  if (options.base.empty() && options.base_format)
    misuse("--base-format without --base");
}

std::unique_ptr<Target> open_file(const TargetOptions& options, Changes changes) {
  const bool qcow2 = format_of(options) == Format::qcow2;
  check_combination(options, qcow2);
  const bool device = is_block_device(options.name);
  if (device && qcow2)
    misuse("{}: a block device takes a raw disk only", options.name);
  if (device && !options.apply && !options.force)
    refuse(EEXIST, "{}: is a block device; --apply or --force writes to it", options.name);
  if (options.apply || device)
    return std::make_unique<ApplyTarget>(
        options.name, options.force ? ApplyTarget::Doubts::ignore : ApplyTarget::Doubts::refuse,
        changes);
  const Existing existing = options.force ? Existing::replace : Existing::refuse;
  if (!qcow2)
    return std::make_unique<RawTarget>(options.name, existing);
  image::Backing backing{options.base, Format::qcow2};
  if (!options.base.empty())
    backing.format = base_format(options);
  return std::make_unique<Qcow2Target>(options.name, existing, std::move(backing));
}

}  // namespace

bool is_nbd_uri(std::string_view name) {
  return std::any_of(kNbdSchemes.begin(), kNbdSchemes.end(),
                     [&](std::string_view scheme) { return name.starts_with(scheme); });
}

void refuse_as_source(const TargetOptions& options,
                      const std::vector<image::Disk::OpenFile>& source) {
  const std::string file = follow_link(options.name);
  const std::string mark = image::unfinished_mark_of(file);
  for (const std::string& written : {file, partial_name_of(file), mark, next_mark_of(mark)}) {
    struct stat status {};
    if (::stat(written.c_str(), &status) != 0)
      continue;
    for (const image::Disk::OpenFile& read : source)
      if (share_bytes(status, read.status))
        refuse(EINVAL, "{}: is the source itself, or part of it ({})",
               written == file ? options.name : written, read.name);
  }
}

std::unique_ptr<Target> open_target(const TargetOptions& options) {
  if (options.name.empty())
    misuse("the target has no name");
  for (const std::string_view scheme : {"delta:", "nbd:"})  // more likely than a file of that name
    if (options.name.starts_with(scheme))
      misuse("{}: no target is written like that; say {} for a file, or nbd://HOST/EXPORT",
             options.name, "./" + options.name);
  const bool nothing = options.name == "null:";
  const Changes changes = options.apply ? Changes::apply : Changes::refuse;
  if (!nothing && !is_nbd_uri(options.name))
    return open_file(options, changes);
  check_combination(options, false);
  if (options.format)
    misuse("--format is for files; {} is none", options.name);
  if (nothing)
    return std::make_unique<NullTarget>();
  return std::make_unique<NbdTarget>(options.name, changes, options.timeout);
}

}  // namespace nbdelta::client::target
