#include <algorithm>
#include <utility>

#include "sim/fake_qemu.hpp"

// What QEMU tells of itself.
namespace nbdelta::sim {

using namespace qapi;

void FakeQemu::add_query_commands() {
  commands_.add<QueryBlock>([this](const QueryBlock&) { return query_block(); });
  commands_.add<QueryNamedBlockNodes>([this](const QueryNamedBlockNodes& command) {
    std::vector<NodeInfo> infos;
    for (const auto& node : graph_.nodes())
      infos.push_back(describe(graph_, *node, command.flat.value_or(false)));
    std::reverse(infos.begin(), infos.end());
    return infos;
  });
  commands_.add<QueryStatus>([this](const QueryStatus&) {
    return RunState{.running = run_state_ == "running", .status = run_state_};
  });
  commands_.add<Stop>([this](const Stop&) {
    if (run_state_ == "running")
      change_run_state("paused", "STOP");
    return Nothing{};
  });
  commands_.add<Cont>([this](const Cont&) {
    if (run_state_ != "running")
      change_run_state("running", "RESUME");
    return Nothing{};
  });
  commands_.add<QueryMigrate>([this](const QueryMigrate&) {
    MigrationInfo info;
    if (!migration_.empty())
      info.status = migration_;
    return info;
  });
  commands_.add<QueryIothreads>([](const QueryIothreads&) { return std::vector<IothreadInfo>(); });
  commands_.add<QueryCommands>([this](const QueryCommands&) {
    std::vector<CommandInfo> infos;
    for (std::string& name : commands_.names())
      infos.push_back({std::move(name)});
    return infos;
  });
}

void FakeQemu::change_run_state(const std::string& state, const std::string& event) {
  run_state_ = state;
  emit(event, {});
  write_held_back();
}

/// Those of -drive go first, since they are known by a name.
std::vector<DeviceInfo> FakeQemu::query_block() {
  std::vector<DeviceInfo> infos;
  for (const Device& device : graph_.devices()) {
    if (device.unplugged)
      continue;
    DeviceInfo info;
    info.device = device.name;
    info.qdev = "/machine/peripheral/" + device.id + "/virtio-backend";
    info.removable = device.removable;
    info.io_status = run_state_ == "io-error" ? "nospace" : "ok";
    if (device.root != nullptr)
      info.inserted = describe(graph_, *device.root, false);
    infos.push_back(std::move(info));
  }
  std::stable_partition(infos.begin(), infos.end(),
                        [](const DeviceInfo& info) { return !info.device.empty(); });
  return infos;
}

}  // namespace nbdelta::sim
