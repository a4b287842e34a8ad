#include <fmt/format.h>

#include <algorithm>

#include "sim/fake_qemu.hpp"

// What the users of a node need, and what they let others do beside them (QEMU block.c,
// bdrv_parent_perms_conflict()).
namespace nbdelta::sim {

namespace {

enum Permission : unsigned { kRead = 1, kWrite = 2, kWriteUnchanged = 4, kResize = 8, kAll = 15 };

std::string names_of(unsigned permissions) {
  std::string names;
  for (const auto& [permission, name] : {std::pair{kRead, "consistent read"},
                                         {kWrite, "write"},
                                         {kWriteUnchanged, "write unchanged"},
                                         {kResize, "resize"}})
    if ((permissions & permission) != 0)
      names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  return names;
}

}  // namespace

/// What a commit does itself with a node, besides what the guest does through it.
void FakeQemu::add_uses_of_job(const Job& job, const Node& node, std::vector<Use>& uses) const {
  if (!job.in_force)
    return;
  const bool grows = job.base->image->granules() < job.top->image->granules();
  const unsigned writes = kWrite | (grows ? kResize : 0U);
  if (&node == job.base && job.intermediate)
    uses.push_back({writes | kRead, kRead | kWriteUnchanged, "an unnamed block device", "root"});
  else if (&node == job.base)
    uses.push_back({writes, kRead | kWriteUnchanged | kWrite, "an unnamed block device", "root"});
  else if (is_between(job, node) && (job.intermediate || &node != job.top))
    uses.push_back(
        {0, kWriteUnchanged | kWrite, fmt::format("commit job '{}'", job.id), "intermediate node"});
}

/// The newest come first, as far as it matters.
std::vector<FakeQemu::Use> FakeQemu::uses_of(const Node& node) const {
  std::vector<Use> uses;
  for (auto job = jobs_.rbegin(); job != jobs_.rend(); ++job)
    add_uses_of_job(*job, node, uses);
  for (const auto& [id, each] : exports_)
    if (each.node == &node && !each.above_job)
      uses.push_back({kRead, kAll & ~kResize, "an unnamed block device", "root"});
  const bool job_is_above = std::any_of(jobs_.begin(), jobs_.end(), [&](const Job& job) {
    return job.in_force && job.top == &node && job.intermediate;
  });
  for (const Node* user : graph_.users_of(node))
    if (user->backing == &node && !job_is_above)
      uses.push_back(use_as_backing(*user));
  for (const Device& device : graph_.devices()) {
    if (device.root != &node)
      continue;
    const std::string name = device.name.empty()
                                 ? fmt::format("/machine/peripheral/{}/virtio-backend", device.id)
                                 : device.name;
    const unsigned read =
        node.filtered ? 0U : kRead;  // an active commit's node does not ask for it
    const unsigned shares = kRead | kWriteUnchanged | kResize | (node.filtered ? kWrite : 0U);
    uses.push_back({read | kWrite, shares, fmt::format("block device '{}'", name), "root"});
  }
  return uses;
}

/// What a node needs of the one that it lies over follows from what its own users need.
FakeQemu::Use FakeQemu::use_as_backing(const Node& node) const {
  unsigned needs = 0;
  unsigned shares = kAll;
  for (const Use& use : uses_of(node)) {
    needs |= use.needs;
    shares &= use.shares;
  }
  const unsigned changes = (shares & kWrite) != 0 ? kWrite | kResize : 0U;
  return {needs & kRead, kRead | kWriteUnchanged | changes, fmt::format("node '{}'", node.name),
          "backing"};
}

/// Throws where users of the node, or of one below it, exclude each other.
void FakeQemu::check_permissions(const Node& top) const {
  for (const Node* node = &top; node != nullptr; node = node->backing) {
    const std::vector<Use> uses = uses_of(*node);
    for (const Use& one : uses)
      for (const Use& other : uses) {
        const unsigned refused = other.needs & ~one.shares;
        if (&one != &other && refused != 0)
          refuse(
              "Permission conflict on node '{0}': permissions '{1}' are both required by {2} (uses "
              "node '{0}' as '{3}' child) and unshared by {4} (uses node '{0}' as '{5}' child).",
              node->name, names_of(refused), other.by, other.as, one.by, one.as);
      }
  }
}

}  // namespace nbdelta::sim
