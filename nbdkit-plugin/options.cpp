#include "nbdkit-plugin/options.hpp"

#include <filesystem>

#include "base/error.hpp"
#include "base/units.hpp"
#include "image/status_reply.hpp"

namespace nbdelta::plugin {
namespace {

/// nbdkit changes to "/" when it goes to the background. ".." stays: what it means is for the
/// kernel to say, which follows symbolic links first.
std::string absolute(std::string_view key, const std::string& path) {
  if (path.empty())
    fail(EINVAL, "{}=: expected a path", key);
  return std::filesystem::absolute(path).string();
}

bool parse_switch(std::string_view key, const std::string& value) {
  for (const char* on : {"on", "yes", "true", "1"})
    if (value == on)
      return true;
  for (const char* off : {"off", "no", "false", "0"})
    if (value == off)
      return false;
  fail(EINVAL, "{}={}: expected on or off", key, value);
}

}  // namespace

void Options::set(std::string_view key, const std::string& value) {
  if (key == "image") {
    if (!image.empty())
      fail(EINVAL, "image={}: there is an image already ({})", value, image);
    image = absolute(key, value);
  } else if (key == "format") {
    open.format = image::parse_format(value, "format");
  } else if (key == "map") {
    map = value;
    if (!map_is_uri())
      map = absolute(key, value);
  } else if (key == "map-context") {
    map_context = value;
  } else if (key == "backing") {
    open.permitted_folders.push_back(absolute(key, value));
  } else if (key == "lock") {
    open.locking = parse_switch(key, value) ? image::Locking::on : image::Locking::off;
  } else if (key == "direct") {
    open.caching = parse_switch(key, value) ? image::Caching::direct : image::Caching::page_cache;
  } else if (key == "packed") {
    packed = parse_switch(key, value);
  } else if (key == "readahead") {
    readahead = parse_size(value, key);
  } else {
    fail(EINVAL, "unknown parameter '{}'; 'nbdkit delta --help' lists those that there are", key);
  }
}

void Options::check() const {
  if (image.empty())
    fail(EINVAL, "which image? Say 'nbdkit delta disk.qcow2', or image=FILE");
  if (map.empty() && !map_context.empty())
    fail(EINVAL, "map-context={}: needs map=", map_context);
  if (map_is_uri() && map_context.empty())
    fail(EINVAL, "map={}: needs map-context=, for instance map-context={}NAME", map,
         image::kDirtyBitmapPrefix);
  if (!map_context.empty() && map_context != image::kBaseAllocation &&
      !map_context.starts_with(image::kDirtyBitmapPrefix))
    fail(EINVAL, "map-context={}: expected {}NAME or {}", map_context, image::kDirtyBitmapPrefix,
         image::kBaseAllocation);
}

const char* Options::help() {
  return "[image=]<FILE>         (required) The image to serve; nobody may write to it.\n"
         "format=qcow2|raw       Its format, never guessed (default: qcow2).\n"
         "backing=<FOLDER>       Backing and data files may be opened from here; may be repeated.\n"
         "map=<URI|FILE>         Dirty map: an NBD server's, or from 'nbdinfo --map --json'.\n"
         "map-context=<CONTEXT>  The metadata context of map=, such as qemu:dirty-bitmap:b0.\n"
         "lock=on|off            Take part in QEMU's image locking (default: on).\n"
         "direct=on|off          Read data with O_DIRECT (default: off).\n"
         "packed=on|off          Serve packed:EXPORT too, for nbdelta; no filters (default: off).\n"
         "readahead=<SIZE>       Announce so much data ahead to the kernel (default: 16M).";
}

}  // namespace nbdelta::plugin
