#include <fmt/format.h>

#include <algorithm>

#include "sim/fake_qemu.hpp"
#include "sim/unawaited.hpp"

// QEMU's own NBD server.
namespace nbdelta::sim {

namespace json = qapi::json;
using namespace qapi;

void FakeQemu::add_export_commands() {
  commands_.add<NbdServerStart>([this](const NbdServerStart& command) {
    if (command.address.type != "unix")
      refuse("Parameter 'type' does not accept value '{}'", command.address.type);
    if (nbd_server_)
      refuse("NBD server already running");
    nbd_server_ = command.address.data.path;
    return Nothing{};
  });
  commands_.add<NbdServerStop>([this](const NbdServerStop&) { return stop_nbd_server(); });
  commands_.add<BlockExportAdd>(
      [this](const BlockExportAdd& command) { return export_add(command); });
  commands_.add<BlockExportDel>([this](const BlockExportDel& command) {
    const std::string mode = command.mode.value_or("safe");
    if (mode != "hard" && mode != "safe")
      refuse("Parameter 'mode' does not accept value '{}'", mode);
    return export_del(command.id, mode == "hard");
  });
  commands_.add<QueryBlockExports>([this](const QueryBlockExports&) {
    std::vector<ExportInfo> infos;
    std::vector<std::string> ids = export_ids();
    std::reverse(ids.begin(), ids.end());
    for (const std::string& id : ids)
      infos.push_back({.id = id, .type = "nbd", .node_name = exports_.at(id).node->name});
    return infos;
  });
}

/// The oldest first.
std::vector<std::string> FakeQemu::export_ids() const {
  std::vector<const Export*> all;
  for (const auto& [id, each] : exports_)
    all.push_back(&each);
  std::sort(all.begin(), all.end(),
            [](const Export* a, const Export* b) { return a->serial < b->serial; });
  std::vector<std::string> ids;
  for (const Export* each : all)
    ids.push_back(each->id);
  return ids;
}

/// The oldest export goes first; since QEMU 10 the newest.
Nothing FakeQemu::stop_nbd_server() {
  if (!nbd_server_)
    refuse("NBD server not running");
  std::vector<std::string> ids = export_ids();
  if (version_.major >= 10)
    std::reverse(ids.begin(), ids.end());
  for (const std::string& id : ids)
    end_export(id);
  nbd_server_.reset();
  return {};
}

const Export* FakeQemu::find_export(const std::string& name) const {
  for (const auto& [id, each] : exports_)
    if (each.name == name && !each.ends)
      return &each;
  return nullptr;
}

std::pair<Node*, Bitmap*> FakeQemu::exported_bitmap(Node& top, const std::string& name) {
  for (Node* node = &top; node != nullptr; node = node->backing)
    if (Bitmap* bitmap = node->find_bitmap(name))
      return {node, bitmap};
  refuse("Bitmap '{}' is not found", name);
}

Nothing FakeQemu::export_add(const BlockExportAdd& command) {
  if (command.type != "nbd")
    refuse("Parameter 'type' does not accept value '{}'", command.type);
  if (!is_well_formed(command.id))
    refuse("Invalid block export id");
  if (exports_.count(command.id) != 0)
    refuse("Block export id '{}' is already in use", command.id);
  Node* node = graph_.find(command.node_name);
  if (node == nullptr)
    refuse("Cannot find device='' nor node-name='{}'", command.node_name);
  if (!nbd_server_)
    refuse("NBD server not running");
  format_node(*node);
  if (find_export(command.name) != nullptr)
    refuse("NBD server already has export named '{}'", command.name);
  std::vector<Bitmap*> bitmaps;
  for (const std::string& name : command.bitmaps) {
    const auto [owner, bitmap] = exported_bitmap(*node, name);
    if (bitmap->busy())
      refuse("Bitmap '{}' is currently in use by another operation and cannot be used", name);
    if (bitmap->inconsistent)
      refuse("Bitmap '{}' is inconsistent and cannot be used", name);
    if (!owner->read_only && bitmap->recording)
      refuse("Enabled bitmap '{}' incompatible with readonly export", name);
    bitmaps.push_back(bitmap);
  }
  for (Bitmap* bitmap : bitmaps)
    ++bitmap->users;
  Export& added = exports_[command.id];
  added = {.id = command.id,
           .name = command.name,
           .node = node,
           .bitmaps = command.bitmaps,
           .serial = ++last_export_};
  try {
    check_permissions(*node);
  } catch (const BlockError&) {
    for (Bitmap* bitmap : bitmaps)
      --bitmap->users;
    exports_.erase(command.id);
    throw;
  }
  graph_.hold(added.node);
  return {};
}

/// Where a client is connected, it ends after the answer only.
Nothing FakeQemu::export_del(const std::string& id, bool hard) {
  const auto found = exports_.find(id);
  if (found == exports_.end())
    refuse("Export '{}' is not found", id);
  const bool in_use = hooks_.export_in_use(id);
  if (in_use && !hard)
    refuse("export '{}' still in use", id);
  if (!in_use && timing_.export_end == Clock::Duration::zero()) {
    end_export(id);
    return {};
  }
  found->second.ends = true;
  const auto end = [](FakeQemu* self, std::uint64_t serial) -> asio::awaitable<void> {
    co_await self->clock_->wait(self->timing_.export_end);
    for (const auto& [each_id, each] : self->exports_)
      if (each.serial == serial) {
        self->end_export(std::string(each_id));
        co_return;
      }
  };
  asio::co_spawn(executor_, end(this, found->second.serial), kUnawaited);
  return {};
}

void FakeQemu::end_export(const std::string& id) {
  const auto found = exports_.find(id);
  Export& deleted = found->second;
  for (const std::string& name : deleted.bitmaps)
    --exported_bitmap(*deleted.node, name).second->users;
  graph_.let_go(deleted.node);
  json::object data{{"id", deleted.id}};
  exports_.erase(found);
  emit("BLOCK_EXPORT_DELETED", std::move(data));
}

}  // namespace nbdelta::sim
