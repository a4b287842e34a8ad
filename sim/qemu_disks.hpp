#pragma once

#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

#include "sim/fake_qemu.hpp"
#include "sim/guest.hpp"

namespace nbdelta::sim {

/// What each granule of each disk must read as: the number of the last write to it that was
/// acknowledged; 0 is zeros.
using DiskContents = std::vector<std::vector<WriteNumber>>;

/// The disks that a guest has in QEMU. Each of its writes gets a number of its own, and is recorded
/// when it was acknowledged. For one thread.
class QemuDisks final : public Disks {
 public:
  /// All of QEMU's devices, as they are now. `contents`: what an earlier QEMU has left; without it
  /// all is zeros. Writes' numbers begin after `last_number`.
  explicit QemuDisks(FakeQemu& qemu, DiskContents contents = {}, WriteNumber last_number = 0)
      : qemu_(&qemu), contents_(std::move(contents)), last_number_(last_number) {
    contents_.resize(qemu.graph().devices().size());
    for (std::size_t i = 0; i < contents_.size(); ++i)
      contents_[i].resize(image(i).granules());
  }

  std::size_t count() const override { return contents_.size(); }
  std::uint64_t granules(std::size_t disk) const override { return contents_[disk].size(); }
  std::uint64_t granule_size(std::size_t disk) const override { return image(disk).granule_size(); }
  void write(std::size_t disk, std::uint64_t granule, Fill fill, WriteDone done) override {
    const WriteNumber number = fill == Fill::zeros ? 0 : ++last_number_;
    const WriteDone record = [this, disk, granule, number, done](const std::exception_ptr& error) {
      if (!error)
        contents_[disk][granule] = number;
      done(error);
    };
    qemu_->write(device(disk), {granule, number}, record);
  }

  const DiskContents& contents() const { return contents_; }
  WriteNumber last_number() const { return last_number_; }

 private:
  Device& device(std::size_t disk) const { return qemu_->graph().devices()[disk]; }
  const Image& image(std::size_t disk) const { return *device(disk).root->image; }

  FakeQemu* qemu_;
  DiskContents contents_;
  WriteNumber last_number_;
};

}  // namespace nbdelta::sim
