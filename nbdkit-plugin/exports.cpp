#include "nbdkit-plugin/exports.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/units.hpp"
#include "image/packed.hpp"
#include "image/qcow2_layer.hpp"
#include "nbdkit-plugin/dirty_map.hpp"

namespace nbdelta::plugin {
namespace {

constexpr std::string_view kDirtyPrefix = "dirty:";

std::string changed(std::string_view how) {
  return fmt::format("{}{}; ", image::kChangedViewDescription, how);
}

}  // namespace

Exports::Exports(const Options& options) : disk_(image::Disk::open(options.image, options.open)) {
  const bool whole = disk_.missing_backing().empty();
  if (whole) {
    add("", image::kWholeDiskDescription, disk_.state(), image::View::image(disk_));
    add("image", image::kWholeDiskDescription, disk_.state(), image::View::image(disk_));
  } else {
    warnings_.push_back(disk_.missing_backing() + "; only the export 'layer' is served");
  }
  add("layer", changed("what the image file itself holds, not its backing file"), disk_.state(),
      image::View::layer(disk_));
  if (whole)
    add_bitmaps();
  if (whole && !options.map.empty()) {
    map_ = options.map_is_uri()
               ? read_map_from_nbd(options.map, options.map_context, disk_.size())
               : read_map_from_json(options.map, options.map_context, disk_.size());
    add("dirty", changed("what the map given by map= says"),
        disk_.state() ^ image::digest_of(*map_), image::View::dirty(disk_, *map_));
  }
}

void Exports::add(std::string name, std::string_view description, std::uint64_t state,
                  image::View view) {
  exports_.push_back({std::move(name), fmt::format("{}state {:016x}", description, state), view});
}

/// A bitmap that cannot be used takes nothing from the rest.
void Exports::add_bitmaps() {
  const image::Qcow2Layer* qcow2 = disk_.qcow2();
  if (qcow2 == nullptr)
    return;
  std::vector<image::DirtyBitmap::Info> infos;
  try {
    infos = qcow2->bitmaps();
  } catch (const Error& error) {
    warnings_.push_back(std::string(error.what()) + "; no bitmap is served");
  }
  for (const image::DirtyBitmap::Info& info : infos) {
    try {
      bitmaps_.push_back(std::make_unique<image::DirtyBitmap>(qcow2->bitmap(info)));
    } catch (const Error& error) {
      warnings_.push_back(std::string(error.what()) + "; it is not served");
      continue;
    }
    add(std::string(kDirtyPrefix) + info.name,
        changed(fmt::format("persistent bitmap '{}', granularity {}", info.name,
                            format_size(info.granularity))),
        disk_.state(), image::View::dirty(disk_, *bitmaps_.back()));
  }
}

const Export& Exports::find(std::string_view name) const {
  const auto found = std::find_if(exports_.begin(), exports_.end(),
                                  [&](const Export& each) { return each.name == name; });
  if (found != exports_.end())
    return *found;
  const bool known = name.empty() || name == "image" || name == "dirty";
  if (!disk_.missing_backing().empty() && (known || name.starts_with(kDirtyPrefix)))
    fail(EACCES, "export '{}': {}; only the export 'layer' is served without it", name,
         disk_.missing_backing());
  if (name.starts_with(kDirtyPrefix)) {
    if (disk_.qcow2() == nullptr)
      fail(ENOENT, "export '{}': a raw image holds no bitmaps; see map=", name);
    (void)disk_.qcow2()->bitmap(name.substr(kDirtyPrefix.size()));  // throws and says why
  }
  if (name == "dirty")
    fail(ENOENT, "export 'dirty': needs map=; persistent bitmaps are served as dirty:NAME");
  fail(ENOENT, "there is no export '{}'; 'nbdinfo --list' shows those that there are", name);
}

}  // namespace nbdelta::plugin
