#include "client/target/qcow2_target.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "client/say.hpp"
#include "client/target/file_names.hpp"
#include "image/permitted_file.hpp"
#include "image/qcow2_format.hpp"
#include "image/qcow2_header.hpp"
#include "image/unfinished_mark.hpp"

namespace nbdelta::client::target {
namespace {

namespace fs = std::filesystem;

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

}  // namespace

Qcow2Target::Qcow2Target(const std::string& path, Existing existing, image::Backing backing)
    : path_(path), file_(path, existing), backing_(std::move(backing)) {
  // QEMU takes what stands before a colon in the first component as a protocol.
  if (const auto colon = backing_.name.find(':');
      colon != std::string::npos && backing_.name.find('/') > colon)
    backing_.name.insert(0, "./");
  file_.check_name();
  check_backing();
}

/// QEMU looks for a relative name in the overlay's folder, wherever we are run.
void Qcow2Target::check_backing() const {
  if (backing_.name.empty())
    return;
  if (backing_.name.size() > image::qcow2::kMaxBackingNameLength)
    refuse(ENAMETOOLONG, "--base: at most {} bytes fit a qcow2 header",
           image::qcow2::kMaxBackingNameLength);
  const fs::path folder = fs::path(path_).parent_path();
  if (is_there(folder / backing_.name)) {
    if (is_there(path_) && fs::equivalent(folder / backing_.name, path_))
      refuse(EINVAL, "--base {}: is the target itself, which --force would replace", backing_.name);
    check_chain((folder / backing_.name).string());
    return;
  }
  if (!is_there(backing_.name))
    refuse(ENOENT, "--base {}: there is no such file in the target's folder ({})", backing_.name,
           folder.empty() ? "." : folder.string());
  refuse(ENOENT, "--base is taken as relative to the target's folder: write --base {}",
         fs::proximate(backing_.name, folder.empty() ? "." : folder).string());
}

/// The base is what it is said to be, is finished, and does not rest on the file that is to be
/// replaced.
void Qcow2Target::check_chain(std::string base) const {
  constexpr int kMostLayers = 256;
  bool is_qcow2 = backing_.format == image::Format::qcow2;
  for (int layer = 0; layer < kMostLayers; ++layer) {
    std::error_code ignored;
    for (const std::string& replaced : {path_, file_.partial()})
      if (fs::equivalent(base, replaced, ignored))
        refuse(EINVAL, "--base {}: it rests on {}, which would be replaced", backing_.name,
               replaced);
    const std::string mark = image::unfinished_mark_of(follow_link(base));
    if (is_there(mark))
      refuse(EINVAL, "--base {}: a pull into {} was not finished (see {}); finish it first",
             backing_.name, base, mark);
    try {
      if (!is_qcow2) {
        image::open_image_file(base, 0);
        return;
      }
      const auto header = image::read_qcow2_header(image::open_image_file(base, 0));
      if (header.backing_name.empty())
        return;
      base = image::resolve_backing_path(base, header.backing_name);
      is_qcow2 = header.backing_format == "qcow2";
    } catch (const Error& error) {
      refuse(error.error_number(), "--base {}: {}", backing_.name, error.what());
    }
  }
}

const image::ExtentMap& Qcow2Target::prepare(const Description& description,
                                             asio::io_context& /*loop*/) {
  const bool whole = description.contents == Contents::whole_disk;
  if (whole && !backing_.name.empty())
    refuse(EINVAL,
           "--base {}: the source gives the whole disk, so nothing is taken from a backing file; "
           "leave --base out",
           backing_.name);
  if (!whole && backing_.name.empty())
    say("nbdelta: warning: {} holds only changes; before use name what they are over: "
        "qemu-img rebase -u -b PREVIOUS -F FORMAT {}\n",
        path_, path_);
  const std::uint64_t cluster_size = image::Qcow2Overlay::suitable_cluster_size(*description.map);
  const image::ExtentMap* map = description.map;
  if (map->alignment(cluster_size) < cluster_size) {  // a second one of millions of extents is dear
    widened_ = image::widen_to_clusters(*map, cluster_size);
    map = &widened_;
  }
  file_.create();
  file_.check_space(image::Qcow2Overlay::file_size(*map, cluster_size), description.copied_from);
  overlay_.emplace(file_.file(), *map, cluster_size, backing_);
  return *map;
}

void Qcow2Target::write_at(std::span<const std::byte> data, std::uint64_t offset) {
  overlay_->write(data, offset);
}

bool Qcow2Target::write_packed_at(std::span<const std::byte> data,
                                  const image::ExtentMap::Cursor& first, std::uint64_t offset) {
  overlay_->write_packed(data, first.data_before() + (offset - first.extent().offset));
  return true;
}

bool Qcow2Target::copy_at(const File& from, std::uint64_t from_offset, std::uint64_t length,
                          std::uint64_t offset) {
  return overlay_->copy_from(from, from_offset, length, offset);
}

void Qcow2Target::finish() {
  overlay_->finish();
  drop_cached();
  file_.publish();
}

}  // namespace nbdelta::client::target
