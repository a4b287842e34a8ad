#include <filesystem>

#include "tests/nbdkit-plugin/plugin_test.hpp"
#include "tests/support/fuse_mount.hpp"
#include "tests/support/random.hpp"

namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;

using Clients = PluginTest;

TEST_F(Clients, NbdcopyOfTheImageViewIsIdentical) {
  make_changed_disk();
  const NbdServer server = NbdServer::delta({disk});
  run_ok({"nbdcopy", server.uri(), folder / "copy.raw"});
  EXPECT_EQ(difference(disk, "qcow2", folder / "copy.raw", "raw"), "");
}

TEST_F(Clients, QemuIoReads) {
  make_changed_disk();
  const NbdServer server = NbdServer::delta({disk});
  qemu_io(server.uri("dirty:b0"), "raw",
          {"read -P 7 0 128k", "read -P 8 128k 64k", "read -P 0 256k 64k", "read -P 0 512k 64k",
           "read -P 7 576k 448k", "read -P 0 1M 3M"},
          {"-r"});
}

TEST_F(Clients, NbdfuseShowsTheDisk) {
  if (!FuseMount::is_possible())
    GTEST_SKIP() << "no access to /dev/fuse";
  make_changed_disk();
  const NbdServer server = NbdServer::delta({disk});
  FuseMount mount(server.uri());
  EXPECT_EQ(difference(disk, "qcow2", mount.file(), "raw"), "");
  mount.unmount();
}

/// Checks that previous.qcow2 under `incremental` is the disk, and returns the bytes that the
/// incremental itself says something of.
std::uint64_t bytes_in(const std::string& incremental, const std::string& disk) {
  EXPECT_EQ(difference(disk, "qcow2", incremental, "qcow2"), "");
  EXPECT_EQ(check_complaints(incremental), "");
  std::uint64_t bytes = 0;
  for (const MapEntry& entry : qemu_map(incremental, "qcow2"))
    if (entry.depth == 0 && entry.present)
      bytes += entry.length;
  return bytes;
}

TEST_F(Clients, QemuImgConvertMakesAnIncremental) {
  make_changed_disk();
  const std::string incremental = folder / "incremental.qcow2";
  const NbdServer server = NbdServer::delta({disk});
  qemu_img({"convert", "-f", "raw", "-O", "qcow2", "-B", folder / "previous.qcow2", "-F", "qcow2",
            server.uri("dirty:b0"), incremental});
  EXPECT_EQ(bytes_in(incremental, disk), 3 * 64 * kKiB);
  // What the guest zeroed or discarded hides the data of the older backup.
  qemu_io(incremental, "qcow2", {"read -P 0 256k 64k", "read -P 0 512k 64k"}, {"-r"});
  qemu_io(folder / "previous.qcow2", "qcow2", {"read -P 7 256k 64k", "read -P 7 512k 64k"}, {"-r"});
}

TEST_F(Clients, QemuImgConvertOfTheLayer) {
  make_changed_disk();
  const std::string overlay = folder / "overlay.qcow2";
  create_overlay(overlay, disk, "qcow2");
  qemu_io(overlay, "qcow2", {"write -q -P 1 0 64k", "write -q -z 128k 64k"});
  const std::string incremental = folder / "incremental.qcow2";
  const NbdServer server = NbdServer::delta({overlay, "backing=" + folder.path()});
  qemu_img({"convert", "-f", "raw", "-O", "qcow2", "-B", disk, "-F", "qcow2", server.uri("layer"),
            incremental});
  EXPECT_EQ(bytes_in(incremental, overlay), 2 * 64 * kKiB);
}

/// Random writes, zeroes and discards, over several backups.
TEST_F(Clients, IncrementalsFollowADiskThatChanges) {
  Random random = Random::from_environment();
  const std::uint64_t size = 16 * kMiB;
  const char* const option_sets[] = {"", "cluster_size=4k", "cluster_size=512",
                                     "extended_l2=on,cluster_size=64k",
                                     "compat=1.1,refcount_bits=1"};
  for (const char* options : option_sets) {
    SCOPED_TRACE(options);
    fs::remove(disk);
    create_image(disk, "qcow2", size, options);
    std::string previous = folder / fmt::format("full-{}.qcow2", random.next());
    qemu_io(disk, "qcow2", {"write -q -P 1 0 8M"});
    qemu_img({"convert", "-O", "qcow2", disk, previous});
    for (int round = 0; round < 3; ++round) {
      const std::string bitmap = fmt::format("b{}", round);
      qemu_img({"bitmap", "--add", "-g", random.chance(50) ? "4k" : "64k", disk, bitmap});
      std::vector<std::string> changes;
      for (int i = 0; i < 20; ++i) {
        const std::uint64_t offset = random.below(size / 512) * 512;
        const std::uint64_t length =
            std::min(size - offset, (1 + random.below(1024)) * std::uint64_t{512});
        const std::uint64_t kind = random.below(3);
        changes.push_back(
            kind == 0 ? fmt::format("write -q -P {} {} {}", 2 + random.below(250), offset, length)
            : kind == 1
                ? fmt::format("write -q -z {}{} {}", random.chance(50) ? "-u " : "", offset, length)
                : fmt::format("discard -q {} {}", offset, length));
      }
      qemu_io(disk, "qcow2", changes, {"-d", "unmap"});
      const std::string incremental = fmt::format("{}.inc{}", previous, round);
      const NbdServer server = NbdServer::delta({disk});
      qemu_img({"convert", "-f", "raw", "-O", "qcow2", "-B", previous, "-F", "qcow2",
                server.uri("dirty:" + bitmap), incremental});
      (void)bytes_in(incremental, disk);
      previous = incremental;
    }
  }
}

}  // namespace
}  // namespace nbdelta::testing
