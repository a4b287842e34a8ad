#include "client/backup/inventory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "client/json_text.hpp"

namespace nbdelta::client::backup {
namespace {

constexpr std::size_t kLongestName = 160;  // with what overlays and their marks add, 255

namespace json = boost::json;
using qapi::ImageInfo;
using qapi::NodeInfo;

/// The image on top, and what is open below it.
std::vector<ImageInfo> images_of(const NodeInfo& top) {
  std::vector<ImageInfo> images{top.image};
  while (images.back().backing_image && images.back().backing_image->is_object()) {
    ImageInfo below;
    qapi::from_json(*images.back().backing_image, below, "query-block: backing-image");
    images.push_back(std::move(below));
  }
  return images;
}

/// The node that has this image open in its format: not its protocol node.
const NodeInfo* find_node(const std::vector<NodeInfo>& nodes, const ImageInfo& image) {
  const auto is_it = [&](const NodeInfo& node) {
    return node.node_name && node.driver == image.format && node.image.filename == image.filename;
  };
  const auto found = std::find_if(nodes.begin(), nodes.end(), is_it);
  return found == nodes.end() ? nullptr : &*found;
}

/// The protocol node below it.
std::string find_file_node(const std::vector<NodeInfo>& nodes, const ImageInfo& image) {
  for (const NodeInfo& node : nodes)
    if (node.node_name && (node.driver == "file" || node.driver == "host_device") &&
        node.image.filename == path_of(image))
      return *node.node_name;
  return {};
}

/// "/machine/peripheral/vda/virtio-backend" -> "vda"; "vda" stays; nothing for a device without id.
std::string qdev_id(std::string_view qdev) {
  constexpr std::string_view kNamed = "/machine/peripheral/";
  if (qdev.starts_with(kNamed)) {
    qdev.remove_prefix(kNamed.size());
    return std::string(qdev.substr(0, qdev.find('/')));
  }
  return std::string(qdev.starts_with('/') ? std::string_view() : qdev);
}

/// What QEMU tells of qcow2 images only; empty for others, and where it does not tell it.
std::string qcow2_detail(const ImageInfo& image, std::string_view name) {
  if (image.format != "qcow2" || !image.format_specific || !image.format_specific->is_object())
    return {};
  const json::value* data = image.format_specific->get_object().if_contains("data");
  const json::value* detail =
      data != nullptr && data->is_object() ? data->get_object().if_contains(name) : nullptr;
  return detail != nullptr && detail->is_string() ? std::string(detail->get_string())
                                                  : std::string();
}

/// Version 2 of qcow2 ("compat": "0.10") has no bitmaps extension.
bool can_keep_bitmaps(const ImageInfo& image) {
  const std::string compat = qcow2_detail(image, "compat");
  return !compat.empty() && compat != "0.10";
}

/// Adds an image's external data file to what is behind the base; returns as take_base() does.
std::string take_data_file(GuestDisk& disk, const ImageInfo& image,
                           const std::vector<NodeInfo>& nodes) {
  const std::string file = qcow2_detail(image, "data-file");
  if (file.empty())
    return {};
  if (!file.starts_with('/'))
    return fmt::format("the external data file of {} has a relative path ({})", image.filename,
                       file);
  if (std::none_of(nodes.begin(), nodes.end(),
                   [&](const NodeInfo& node) { return node.image.filename == file; }))
    return fmt::format("{} names the external data file {}, and QEMU uses another", image.filename,
                       file);
  disk.behind_base.push_back(file);
  return {};
}

/// Says why what lies behind an image cannot be opened, or nothing: QEMU alone understands options
/// and protocols in the place of a name.
std::string check_backing_name(const ImageInfo& image) {
  const std::string name = image.backing_filename.value_or("");
  const std::size_t colon = name.find(':');
  if (colon == std::string::npos || name.find('/') < colon || name.starts_with("file:"))
    return {};
  return fmt::format(
      "{} calls its backing file '{}', and only plain file names are opened; 'qemu-img rebase -u "
      "-b FILE -F FORMAT' gives it one while the guest is shut down",
      path_of(image), name);
}

/// Says why a path of this machine cannot stand in journals and manifests, or nothing.
std::string check_text(const std::string& qemu, const std::string& local) {
  if (is_json_text(local))
    return {};
  return fmt::format("what QEMU calls {} has a path here that is not UTF-8", qemu);
}

bool has_only(const json::object& object, std::initializer_list<std::string_view> names) {
  return std::all_of(object.begin(), object.end(), [&](const auto& member) {
    return std::find(names.begin(), names.end(), member.key()) != names.end();
  });
}

/// Whether QEMU calls a qcow2 image by its options for nothing but what is open below it.
bool has_backing_of_its_own(const ImageInfo& image) {
  constexpr std::string_view kOptions = "json:";
  if (image.format != "qcow2" || !image.filename.starts_with(kOptions))
    return false;
  boost::system::error_code error;
  const json::value options =
      json::parse(std::string_view(image.filename).substr(kOptions.size()), error);
  if (error || !options.is_object() ||
      !has_only(options.get_object(), {"driver", "file", "backing"}))
    return false;
  const json::value* file = options.get_object().if_contains("file");
  return file != nullptr && file->is_object() &&
         has_only(file->get_object(), {"driver", "filename"});
}

/// The plugin opens what an image's header names. Returns as take_base() does. `below`: what QEMU
/// has there; null: nothing.
std::string compare_backing(const ImageInfo& image, const ImageInfo* below,
                            const PathReader& paths) {
  if (!has_backing_of_its_own(image))
    return {};
  const std::string path = path_of(image);
  std::optional<std::string> named;
  try {
    named = paths.backing_of(paths.to_local(path));
  } catch (const Error& error) {
    return error.what();
  }
  const std::string has = below == nullptr ? std::string() : paths.to_local(path_of(*below));
  if (named.value_or("") == has)
    return {};
  return fmt::format("QEMU has {} below {}, and the header of that names {}",
                     has.empty() ? "nothing" : has, path, named.value_or("nothing"));
}

std::string name_of(const qapi::DeviceInfo& device, const GuestDisk& disk) {
  if (!device.device.empty())
    return device.device;
  if (!disk.qdev.empty())
    return disk.qdev;
  if (!is_automatic(disk.base_node))
    return disk.base_node;
  return std::string(base_name(disk.base_path));
}

/// Fills what is known of the base; says why the disk cannot be backed up, or nothing.
std::string take_base(GuestDisk& disk, const ImageInfo& image, const NodeInfo* node) {
  if (image.format != "qcow2" && image.format != "raw")
    return fmt::format("its format is {}, not qcow2 or raw", image.format);
  if (node == nullptr)
    return fmt::format("QEMU does not say which node has {} open", image.filename);
  const std::string path = has_backing_of_its_own(image) ? path_of(image) : image.filename;
  if (path.starts_with("json:") || path.find("://") != std::string::npos)
    return fmt::format("it is no local file or block device ({})", path);
  if (!path.starts_with('/'))
    return fmt::format("QEMU knows its image by a relative path ({}): give QEMU an absolute one",
                       path);
  disk.base_node = *node->node_name;
  disk.detect_zeroes = node->detect_zeroes.value_or("off");
  disk.base_path = path;
  disk.base_size = image.virtual_size;
  disk.base_format = image.format == "raw" ? image::Format::raw : image::Format::qcow2;
  disk.can_keep_bitmaps = can_keep_bitmaps(image);
  disk.bitmaps = node->bitmaps.value_or(std::vector<qapi::BitmapInfo>());
  return {};
}

/// Says why a device's node cannot be put under an overlay, or nothing: each of two devices would
/// have a session of its own with it.
std::string check_alone(const std::vector<qapi::DeviceInfo>& devices,
                        const qapi::DeviceInfo& device) {
  const auto& node = device.inserted->node_name;
  const auto shares = [&](const qapi::DeviceInfo& each) {
    return each.inserted && node && each.inserted->node_name == node;
  };
  const auto count = std::count_if(devices.begin(), devices.end(), shares);
  return count < 2 ? std::string()
                   : fmt::format("{} devices of the guest use its node {}", count, *node);
}

}  // namespace

bool is_automatic(std::string_view node_name) {
  return node_name.starts_with('#');
}

std::string path_of(const ImageInfo& image) {
  constexpr std::string_view kOptions = "json:";
  if (image.format != "qcow2" || !image.filename.starts_with(kOptions))
    return image.filename;
  boost::system::error_code error;
  const json::value options =
      json::parse(std::string_view(image.filename).substr(kOptions.size()), error);
  const json::object* file = nullptr;
  if (!error && options.is_object())
    if (const json::value* member = options.get_object().if_contains("file"))
      file = member->if_object();
  const json::value* name = file == nullptr ? nullptr : file->if_contains("filename");
  return name != nullptr && name->is_string() ? std::string(name->get_string()) : image.filename;
}

std::string size_trouble(const GuestDisk& disk) {
  if (disk.overlays.empty() || disk.size <= disk.base_size)
    return {};
  return fmt::format(
      " (the disk was made larger while it ran on its overlay: it has {} bytes, and {} below it "
      "has "
      "{}; a block device must be made as large first)",
      disk.size, disk.base_path, disk.base_size);
}

Inventory take_inventory(const std::vector<qapi::DeviceInfo>& devices,
                         const std::vector<NodeInfo>& nodes, const PathReader& paths) {
  Inventory inventory;
  std::set<std::string> names;
  for (const qapi::DeviceInfo& device : devices) {
    GuestDisk disk;
    disk.device = device.device;
    disk.qdev = qdev_id(device.qdev.value_or(""));
    const std::string who = device.device.empty() ? disk.qdev : device.device;
    if (!device.inserted) {
      inventory.left_out.push_back({who, "it has no medium", true});
      continue;
    }
    if (device.removable || device.inserted->read_only) {
      inventory.left_out.push_back(
          {who, device.removable ? "it is removable" : "it is read-only", true});
      continue;
    }
    const NodeInfo& top = *device.inserted;
    if (top.image.virtual_size == 0 && !session_of(base_name(path_of(top.image)))) {
      inventory.left_out.push_back({who, "it has no bytes", true});
      continue;
    }
    disk.top = top.node_name.value_or("");
    disk.size = top.image.virtual_size;
    disk.direct = top.cache && top.cache->direct;
    std::string reason = check_alone(devices, device);
    bool on_top = true;
    bool directly_below = true;  // of the base
    const std::vector<ImageInfo> images = images_of(top);
    for (std::size_t i = 0; i < images.size(); ++i) {
      const ImageInfo& image = images[i];
      const ImageInfo* next = i + 1 < images.size() ? &images[i + 1] : nullptr;
      const std::string path = path_of(image);
      const std::string local = paths.to_local(path);
      if (reason.empty())
        reason = check_text(path, local);
      if (!disk.base_local.empty()) {
        const NodeInfo* below = find_node(nodes, image);
        if (std::exchange(directly_below, false) && below != nullptr)
          disk.backing_node = *below->node_name;
        disk.behind_base.push_back(path);
        if (reason.empty())
          reason = compare_backing(image, next, paths);
        if (reason.empty())
          reason = take_data_file(disk, image, nodes);
        if (reason.empty())
          reason = check_backing_name(image);
        continue;
      }
      const NodeInfo* node = std::exchange(on_top, false) ? &top : find_node(nodes, image);
      const auto session = session_of(base_name(local));
      if (session && image.format == "qcow2" && image.backing_filename) {
        if (node == nullptr)
          reason = fmt::format("QEMU does not say which node has {} open", image.filename);
        else
          disk.overlays.push_back(
              {*node->node_name, path, local, *session, image.snapshot_names()});
        continue;
      }
      disk.base_local = local;
      disk.base_file_node = find_file_node(nodes, image);
      if (reason.empty())
        reason = take_base(disk, image, node);
      if (reason.empty())
        reason = compare_backing(image, next, paths);
      if (reason.empty())
        reason = take_data_file(disk, image, nodes);
      if (reason.empty())
        reason = check_backing_name(image);
    }
    if (disk.base_node.empty() && reason.empty())
      reason = "what is below our overlay is not open";
    if (reason.empty() && name_of(device, disk).size() > kLongestName)
      reason =
          fmt::format("its name is too long for those of files (at most {} bytes)", kLongestName);
    if (!reason.empty()) {
      inventory.left_out.push_back({who.empty() ? disk.top : who, reason, false});
      continue;
    }
    disk.name = file_safe(name_of(device, disk));
    for (int n = 2; !names.insert(disk.name).second; ++n)
      disk.name = fmt::format("{}-{}", file_safe(name_of(device, disk)), n);
    disk.index = inventory.disks.size();
    inventory.disks.push_back(std::move(disk));
  }
  return inventory;
}

asio::awaitable<Inventory> query_inventory(qmp::Client& qmp, Environment& environment,
                                           const Paths& paths) {
  const auto devices = co_await qmp.call(qapi::QueryBlock{});
  const qapi::QueryNamedBlockNodes query_named_block_nodes{.flat = true};
  const auto nodes = co_await qmp.call(query_named_block_nodes);
  const PathReader reader{
      .to_local =
          [&](const std::string& path) {
            return environment.files().canonical(paths.to_local(path));
          },
      .backing_of = [&](const std::string& local) { return environment.files().backing_of(local); },
  };
  co_return take_inventory(devices, nodes, reader);
}

}  // namespace nbdelta::client::backup
