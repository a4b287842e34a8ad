#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <string_view>

#include "client/backup/names.hpp"
#include "client/json_text.hpp"
#include "client/repository/manifest.hpp"
#include "sim/world.hpp"

// What a session may not do, whatever comes of it; what must hold after every step and in the end.
namespace nbdelta::sim {

namespace backup = client::backup;
namespace repository = client::repository;

namespace {

constexpr Clock::Duration kLongestHold = std::chrono::seconds(15);

}  // namespace

/// Nothing but the transaction happens while the guest is frozen.
void World::check_window(const std::string& what, const Process* self) {
  if (!frozen_since_ || thaw_is_disturbed_)
    return;
  const bool command =
      what.starts_with("command ") && what != "command transaction" && !others_may_connect_;
  if (command || (nbdelta_ && self == nbdelta_.get()))
    violated(fmt::format("while the guest is frozen: {}", what));
}

void World::removed(const std::string& path) {
  if (path.ends_with("/nbdelta-session.json"))
    journal_is_in_doubt_ = false;
  if (!qemu_ || qemu_->process.doomed())
    return;
  for (const auto& node : qemu_->fake.graph().nodes())
    if (node->path == path)
      violated(fmt::format("a file that QEMU has open is removed: {}", path));
}

/// The manifest with the highest number: nothing where there is none.
std::optional<repository::Manifest> World::latest_point() const {
  for (auto file = store_.files().rbegin(); file != store_.files().rend(); ++file) {
    const auto& [path, what] = *file;
    if (!path.starts_with(std::string(kFolder) + "/") || !path.ends_with("/manifest.json"))
      continue;
    repository::Manifest manifest;
    client::from_json_text(what.text, manifest, path);
    return manifest;
  }
  return std::nullopt;
}

/// A bitmap that the next backup could build on is kept until a newer restore point is durable.
void World::check_removal(const qapi::BlockDirtyBitmapRemove& command) {
  Node* node = qemu_->fake.graph().find(command.node);
  const Bitmap* bitmap = node != nullptr ? node->find_bitmap(command.name) : nullptr;
  if (bitmap == nullptr || bitmap->inconsistent || schedule_.by_overlay)
    return;
  const auto latest = latest_point();
  if (!latest || command.name != backup::bitmap_name({latest->chain, latest->number}))
    return;
  for (std::size_t i = 0; i < contents_.size(); ++i)
    if (image_path(i) == node->path && latest->find(disk_name(i)) == nullptr)
      return;  // it had been unplugged: the bitmap is that of an earlier attempt at this number
  const bool complete =
      std::any_of(node->bitmaps.begin(), node->bitmaps.end(), [&](const Bitmap& each) {
        const auto session = backup::session_of(each.name);
        return session && session->chain == latest->chain && each.recording && !each.inconsistent;
      });
  if (complete)
    violated(fmt::format("{} is dropped, and restore point {} is still the last one", command.name,
                         latest->number));
}

/// No commit keeps the guest's writes waiting for long. Whoever puts that right may be killed, or
/// stopped with QEMU's one connection, like the first; then the next one does.
void World::check_held() {
  if (!qemu_ || qemu_->process.doomed()) {
    held_since_.reset();
    return;
  }
  const std::vector<Device>& devices = qemu_->fake.graph().devices();
  if (std::none_of(devices.begin(), devices.end(),
                   [&](const Device& device) { return qemu_->fake.drained(device); }))
    held_since_.reset();
  else if (!held_since_)
    held_since_ = time_.now();
  else if (time_.now() - std::max(*held_since_, qemu_->fake.stalled_until()) > kLongestHold &&
           !guardian_was_killed_ && stops_ < 2)
    violated("a commit holds the guest's writes back");
}

/// A guest that had no room goes on when the session's overlays have gone. Where the session could
/// not see to that, its journal is left for whoever can.
void World::check_space() {
  if (!guest_lives() || qemu_->fake.run_state() != "io-error" || schedule_.by_overlay)
    return;
  for (const auto& [path, file] : store_.files())
    if (path.starts_with("/vm/nbdelta-") || path.ends_with("/nbdelta-session.json") ||
        (file.image && file.image->full))
      return;
  violated("the guest stands, though there is room");
}

void World::check_always() {
  check_held();
  if (!guest_lives())
    return;
  const std::vector<Device>& devices = qemu_->fake.graph().devices();
  for (std::size_t i = 0; i < devices.size(); ++i)
    for (std::uint64_t granule = 0; granule < contents_[i].size(); ++granule) {
      const WriteNumber found = devices[i].unplugged
                                    ? read_unplugged(i, granule)
                                    : qemu_->fake.graph().read(*devices[i].root, granule);
      if (found != contents_[i][granule])
        violated(fmt::format("a write is lost: {} holds {} at granule {}, and {} was written",
                             disk_name(i), found, granule, contents_[i][granule]));
    }
}

WriteNumber World::read_file(const std::string& path, std::uint64_t granule) {
  for (std::string each = path;;) {
    const MemoryImage* image = store_.image(each);
    if (image == nullptr)
      violated(fmt::format("{} is no image", each));
    if (granule >= image->granules())
      return 0;
    if (image->held(granule) == Held::data)
      return image->read(granule);
    if (image->held(granule) == Held::zero || !image->backing())
      return 0;
    each = image->backing()->path;
  }
}

/// Each restore point is the instant of its session's switch, for all disks, and stays it.
void World::check_points() {
  for (const auto& [path, file] : store_.files()) {
    constexpr std::string_view kManifest = "/manifest.json";
    if (!path.starts_with(std::string(kFolder) + "/") || !path.ends_with(kManifest))
      continue;
    repository::Manifest manifest;
    client::from_json_text(file.text, manifest, path);
    if (manifest.external)
      continue;
    const std::string folder = path.substr(0, path.size() - kManifest.size());
    const auto at = std::find_if(switches_.rbegin(), switches_.rend(), [&](const Switch& each) {
      return each.session.chain == manifest.chain && each.session.number == manifest.number;
    });
    if (at == switches_.rend())
      violated(fmt::format("{}: its session has not switched", path));
    for (std::size_t i = 0; i < contents_.size(); ++i) {
      const repository::DiskEntry* entry = manifest.find(disk_name(i));
      if (entry == nullptr && at->absent.count(i) != 0)
        continue;
      if (entry == nullptr || !entry->file)
        violated(fmt::format("{}: has no {}", path, disk_name(i)));
      for (std::uint64_t granule = 0; granule < contents_[i].size(); ++granule) {
        const WriteNumber shown = read_file(folder + "/" + *entry->file, granule);
        if (shown != at->contents[i][granule])
          violated(
              fmt::format("{} is not the instant of its switch: {} shows {} at granule {} "
                          "where {} was",
                          folder, disk_name(i), shown, granule, at->contents[i][granule]));
      }
    }
  }
}

void World::check_clean() {
  if (!faults_.empty())
    return;
  for (const auto& node : qemu_->fake.graph().nodes())
    if (!schedule_.by_overlay && node->name.starts_with("nbdelta-"))
      violated("a node is left: " + node->name);
  if (!qemu_->fake.jobs().empty())
    violated("a job is left: " + qemu_->fake.jobs().front().id);
  if (!qemu_->fake.exports().empty() || qemu_->fake.nbd_server())
    violated("an export is left");
  std::size_t overlays = 0;
  std::vector<std::string> names;
  for (const auto& [path, file] : store_.files()) {
    if (path.starts_with("/vm/nbdelta-") && file.image) {
      ++overlays;
      names.push_back(path);
    }
    if (path.ends_with("/nbdelta-session.json"))
      violated("a journal is left");
  }
  if (overlays != (schedule_.by_overlay ? contents_.size() : 0))
    violated(fmt::format("{} overlays are left: {}", overlays, fmt::join(names, ", ")));
  for (const Plugin& plugin : plugins_)
    if (plugin.alive)
      violated("nbdkit is left: " + plugin.name);
  if (qemu_->agent.frozen())
    violated("the guest is left frozen");
}

}  // namespace nbdelta::sim
