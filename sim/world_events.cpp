#include <fmt/format.h>

#include <algorithm>

#include "sim/world.hpp"

// What befalls a guest: its disks come and go, it migrates, its overlays grow.
namespace nbdelta::sim {

namespace backup = client::backup;

void World::see_event(const std::string& name, const qapi::json::object& data) {
  const qapi::json::value* status = data.if_contains("status");
  note(status != nullptr && status->is_string()
           ? fmt::format("job {}", std::string_view(status->get_string()))
           : fmt::format("event {}", name));
  if (name == "BLOCK_JOB_READY" || name == "BLOCK_JOB_COMPLETED")
    listens_ = false;  // the overlays are on their way out
  if (name == "RESUME")
    qemu_->guest.resume();
  told_of_threshold_ |= listens_ && name == qapi::BlockWriteThresholdEvent::kName;
}

/// Between two turns of QEMU's, as its main loop does it. A guest that stands lets no device go.
void World::unplug_when_due() {
  if (!unplug_ || !guest_lives() || qemu_->agent.frozen() || qemu_->fake.run_state() != "running")
    return;
  const std::size_t disk = contents_.size() - 1;
  Device& device = qemu_->fake.graph().devices()[disk];
  if (device.unplugged || qemu_->fake.drained(device))
    return;
  unplug_ = false;
  for (const Node* node = device.root; node != nullptr; node = node->backing)
    unplugged_[disk].push_back(node->path);
  if (!switches_.empty())
    switches_.back().absent.insert(disk);
  log(fmt::format("{} unplugged", disk_name(disk)));
  qemu_->fake.unplug(device);
}

/// As its operator brings a disk back: with the next start of the guest, after what check-start
/// asks for.
void World::replug() {
  run_recover(false);
  if (qemu_)
    end_qemu();
}

/// In the topmost of its images that is still there: one goes when it is empty, or committed. Where
/// the disk's own has gone, one that is marked counts no more.
WriteNumber World::read_unplugged(std::size_t disk, std::uint64_t granule) {
  const std::vector<std::string>& chain = unplugged_.at(disk);
  for (const std::string& path : chain)
    if (store_.image(path) != nullptr &&
        (path == chain.front() || store_.files().count(path + ".committed") == 0))
      return read_file(path, granule);
  violated(fmt::format("all images of {} are gone", disk_name(disk)));
}

/// Where nothing went wrong, whoever reads the report knows that an overlay has grown.
void World::check_warnings(const SessionSetup& session, const backup::Report& report) {
  if (!told_of_threshold_ || faults_.size() != session.faults.size())
    return;
  if (std::none_of(report.warnings.begin(), report.warnings.end(), [](const std::string& text) {
        return text.find("has grown beyond") != std::string::npos;
      }))
    violated("QEMU has told that an overlay has grown, and the session has not");
  note("warned of an overlay that has grown");
}

}  // namespace nbdelta::sim
