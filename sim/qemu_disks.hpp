#pragma once

#include <cstdint>
#include <utility>

#include "sim/fake_qemu.hpp"
#include "sim/guest.hpp"

namespace nbdelta::sim {

/// The disks that a guest has in QEMU. Each of its writes gets a number of its own. For one thread.
class QemuDisks final : public Disks {
 public:
  /// All of QEMU's devices, as they are now. Writes' numbers begin after `last_number`.
  QemuDisks(FakeQemu& qemu, WriteNumber last_number) : qemu_(&qemu), last_number_(last_number) {}

  std::size_t count() const override { return qemu_->graph().devices().size(); }
  std::uint64_t granules(std::size_t disk) const override { return image(disk).granules(); }
  std::uint64_t granule_size(std::size_t disk) const override { return image(disk).granule_size(); }
  void write(std::size_t disk, std::uint64_t granule, Fill fill, WriteDone done) override {
    const WriteNumber number = fill == Fill::zeros ? 0 : ++last_number_;
    qemu_->write(device(disk), {granule, number}, std::move(done));
  }

 private:
  Device& device(std::size_t disk) const { return qemu_->graph().devices()[disk]; }
  const Image& image(std::size_t disk) const { return *device(disk).root->image; }

  FakeQemu* qemu_;
  WriteNumber last_number_;
};

}  // namespace nbdelta::sim
