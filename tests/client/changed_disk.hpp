#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/arithmetic.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/random.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {

inline constexpr std::uint64_t kDisk = 24 * kMiB;

/// A disk with a full backup, a bitmap since then, and changes of each kind: new data, old data
/// overwritten, zeroed, discarded.
class ChangedDisk {
 public:
  explicit ChangedDisk(Random& random) {
    create_image(image(), "qcow2", kDisk);
    change(random, {"write -q -P"});
    qemu_img({"convert", "-f", "qcow2", "-O", "raw", image(), full_raw()});
    qemu_img({"convert", "-f", "qcow2", "-O", "qcow2", image(), full_qcow2()});
    qemu_img({"bitmap", "--add", "-g", "64k", image(), "b0"});
    change(random, {"write -q -P", "write -q -z", "discard -q", "write -q -z -u"});
  }

  std::string image() const { return folder_ / "disk.qcow2"; }
  std::string full_raw() const { return folder_ / "full.raw"; }
  std::string full_qcow2() const { return folder_ / "full.qcow2"; }
  std::string operator/(std::string_view name) const { return folder_ / name; }

  NbdServer qemu_nbd() const {
    return NbdServer::qemu_nbd({"-r", "-f", "qcow2", "-B", "b0", image()});
  }
  NbdServer storage_daemon() const {
    return NbdServer::storage_daemon(
        {"--blockdev",
         "qcow2,node-name=disk,read-only=on,file.driver=file,file.filename=" + image(), "--export",
         "nbd,id=e,node-name=disk,name=,bitmaps.0=b0"});
  }

 private:
  void change(Random& random, const std::vector<std::string>& kinds) const {
    std::vector<std::string> commands;
    for (int i = 0; i < 12; ++i) {
      const std::string kind = kinds[static_cast<std::size_t>(i) % kinds.size()];
      const std::uint64_t offset = random.below(kDisk / 512) * 512;
      const std::uint64_t length = std::min(random.between(1, 2000) * 512, kDisk - offset);
      const std::string pattern =
          kind.ends_with("-P") ? " " + std::to_string(random.between(1, 255)) : "";
      commands.push_back(kind + pattern + " " + std::to_string(offset) + " " +
                         std::to_string(length));
    }
    qemu_io(image(), "qcow2", commands);
  }

  TempFolder folder_;
};

}  // namespace nbdelta::testing
