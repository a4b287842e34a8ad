#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "client/backup/names.hpp"
#include "client/json_text.hpp"
#include "client/repository/manifest.hpp"
#include "sim/world.hpp"

// What a session may not do, whatever comes of it.
namespace nbdelta::sim {

namespace backup = client::backup;
namespace repository = client::repository;

/// Nothing but the transaction happens while the guest is frozen.
void World::check_window(const std::string& what, const Process* self) {
  if (!frozen_since_ || thaw_is_disturbed_)
    return;
  const bool command = what.starts_with("command ") && what != "command transaction";
  if (command || (nbdelta_ && self == nbdelta_.get()))
    violated(fmt::format("while the guest is frozen: {}", what));
}

void World::removed(const std::string& path) {
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
  const bool complete =
      std::any_of(node->bitmaps.begin(), node->bitmaps.end(), [&](const Bitmap& each) {
        const auto session = backup::session_of(each.name);
        return session && session->chain == latest->chain && each.recording && !each.inconsistent;
      });
  if (complete)
    violated(fmt::format("{} is dropped, and restore point {} is still the last one", command.name,
                         latest->number));
}

}  // namespace nbdelta::sim
