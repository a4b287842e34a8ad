#include <fmt/format.h>

#include <filesystem>

#include "tests/client/session/held_backup.hpp"
#include "tests/client/session/processes.hpp"
#include "tests/client/session/qmp_tap.hpp"
#include "tests/client/session/session_test.hpp"
#include "tests/support/fuse_mount.hpp"
#include "tests/support/nbd_server.hpp"

namespace nbdelta::testing {
namespace {

struct Scheme {
  std::string name;
  std::vector<MachineDisk> disks;
  std::string tracking;
  bool direct = false;
};

class Schemes : public ::testing::TestWithParam<Scheme> {};

TEST_P(Schemes, EveryRestorePointIsExact) {
  Random random = Random::from_environment();
  Machine machine(GetParam().disks);
  const std::vector<std::string> nodes = machine.nodes();
  Points points(machine);
  for (unsigned round = 0; round < 4; ++round) {
    machine.write_at_random(random, 25);
    Command options{"--tracking", GetParam().tracking};
    if (GetParam().direct)
      options.insert(options.end(), {"--direct", "--plugin", "/nowhere/plugin.so"});
    const auto result = points.backup(options);
    EXPECT_EQ(result.at("type").as_string(), round == 0 ? "full" : "incremental");
    machine.write_at_random(random, 5);
  }
  points.check();
  if (GetParam().tracking == "bitmap") {
    EXPECT_THAT(machine.leftovers(), IsEmpty());
    EXPECT_EQ(machine.nodes(), nodes);
  } else {
    // One overlay with its mark and what names it for each disk, and the overlay's two nodes.
    EXPECT_EQ(machine.leftovers().size(), 5 * GetParam().disks.size());
  }
  for (const MachineDisk& disk : machine.disks()) {
    machine.write(disk, "write -P 99 0 64k");
    EXPECT_EQ(machine.command("query-jobs").as_array().size(), 0U);
  }
  machine.quit();
  if (GetParam().tracking != "bitmap")
    return;
  for (const MachineDisk& disk : machine.disks())
    EXPECT_EQ(difference(machine.image(disk), disk.format, machine.model(disk), "raw"), "");
}

MachineDisk qcow2(const std::string& name) {
  return {.name = name};
}
MachineDisk raw(const std::string& name) {
  return {.name = name, .format = "raw"};
}
MachineDisk by_drive(MachineDisk disk) {
  disk.by_drive = true;
  return disk;
}

INSTANTIATE_TEST_SUITE_P(
    Backup, Schemes,
    ::testing::Values(
        Scheme{"Qcow2ByBitmap", {qcow2("vda")}, "bitmap"},
        Scheme{"Qcow2ByOverlay", {qcow2("vda")}, "overlay"},
        Scheme{"RawByBitmap", {raw("vda")}, "bitmap"},
        Scheme{"RawByOverlay", {raw("vda")}, "overlay"},
        Scheme{"DrivesByBitmap", {by_drive(qcow2("a")), by_drive(raw("b"))}, "bitmap"},
        Scheme{"DrivesByOverlay", {by_drive(qcow2("a")), by_drive(raw("b"))}, "overlay"},
        Scheme{"FourByBitmap", {qcow2("a"), raw("b"), by_drive(qcow2("c")), raw("d")}, "bitmap"},
        Scheme{"FourByOverlay", {qcow2("a"), raw("b"), by_drive(qcow2("c")), raw("d")}, "overlay"},
        Scheme{"Version2", {{.name = "old", .options = "compat=0.10"}}, "bitmap"},
        Scheme{"DirectByBitmap", {qcow2("a"), by_drive(qcow2("b"))}, "bitmap", true},
        Scheme{"DirectByOverlay", {qcow2("a"), raw("b")}, "overlay", true},
        Scheme{"SmallClusters", {{.name = "small", .options = "cluster_size=4k"}}, "bitmap"}),
    [](const auto& scheme) { return scheme.param.name; });

TEST(Backup, TrackingCanBeChanged) {
  Random random = Random::from_environment();
  Machine machine({qcow2("vda"), raw("vdb")});
  Points points(machine);
  for (const char* tracking : {"bitmap", "overlay", "overlay", "bitmap", "bitmap", "overlay"}) {
    machine.write_at_random(random, 20);
    points.backup({"--tracking", tracking});
  }
  points.check();
  const auto last = points.backup({"--tracking", "bitmap"});
  EXPECT_EQ(type_of(last, 0), "incremental");
  EXPECT_EQ(type_of(last, 1), "incremental");
  EXPECT_THAT(machine.leftovers(), IsEmpty());
}

TEST(Backup, BaseWithABackingFile) {
  Random random = Random::from_environment();
  const TempFolder folder;
  create_image(folder / "golden.qcow2", "qcow2", 32 << 20);
  qemu_io(folder / "golden.qcow2", "qcow2", {"write -P 3 1M 5M"});
  Machine machine({{.name = "vda", .backing = folder / "golden.qcow2"}});
  Points points(machine);
  for (const char* tracking : {"bitmap", "bitmap", "overlay", "overlay"}) {
    machine.write_at_random(random, 20);
    points.backup({"--tracking", tracking});
  }
  points.check();
}

/// External data files, and a backing file that is named through a symbolic link.
TEST(Backup, BaseWhoseDataIsElsewhere) {
  Random random = Random::from_environment();
  const TempFolder folder;
  for (const char* name : {"golden", "data", "images"})
    std::filesystem::create_directory(folder / name);
  std::filesystem::create_directory_symlink("golden", folder / "link");
  create_image(folder / "golden/golden.qcow2", "qcow2", 32 << 20,
               "data_file=" + folder / "data/golden.raw");
  qemu_io(folder / "golden/golden.qcow2", "qcow2", {"write -P 3 1M 5M"});
  Machine machine({{.name = "vda",
                    .backing = folder / "link/golden.qcow2",
                    .options = "data_file=" + folder / "data/vda.raw",
                    .folder = folder / "images"}});
  Points points(machine);
  for (const Command& options :
       {Command{"--tracking", "bitmap"}, Command{"--tracking", "bitmap", "--commit-deadline", "0"},
        Command{"--tracking", "bitmap", "--direct"}, Command{"--tracking", "overlay"},
        Command{"--tracking", "overlay", "--direct"}, Command{"--tracking", "bitmap"}}) {
    machine.write_at_random(random, 20);
    points.backup(options);
  }
  points.check();
  machine.quit();
  EXPECT_EQ(machine.difference_from_model(machine.disks()[0]), "");
}

TEST(Backup, DisksComeGoAndGrow) {
  Random random = Random::from_environment();
  Machine machine({qcow2("vda"), qcow2("vdb")});
  Points points(machine);
  machine.write_at_random(random, 10);
  points.backup();
  auto one = points.backup({"--disk", "vda"});
  EXPECT_EQ(one.at("disks").as_array().size(), 1U);
  EXPECT_EQ(type_of(one), "incremental");
  auto both = points.backup();
  EXPECT_EQ(type_of(both, 0), "incremental");
  EXPECT_EQ(type_of(both, 1), "full");
  EXPECT_THAT(std::string(both.at("disks").at(1).at("reason").as_string()),
              HasSubstr("not in the last restore point"));

  const auto answer =
      machine.command("block_resize", {{"node-name", "vda"}, {"size", std::uint64_t{48} << 20}});
  EXPECT_FALSE(answer.as_object().contains("error"));
  std::filesystem::resize_file(machine.model(machine.disks()[0]), 48 << 20);
  machine.write(machine.disks()[0], "write -P 4 40M 1M");
  both = points.backup();
  EXPECT_EQ(type_of(both, 0), "full");
  EXPECT_EQ(type_of(both, 1), "incremental");
  EXPECT_THAT(std::string(both.at("disks").at(0).at("reason").as_string()),
              HasSubstr("its size was 32.0 MiB and is 48.0 MiB"));
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t n = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1))
    ++n;
  return n;
}

TEST(Backup, SixteenDisksSwitchInOneTransaction) {
  std::vector<MachineDisk> disks;
  for (int i = 0; i < 16; ++i)
    disks.push_back({.name = fmt::format("d{}", i), .size = 4 << 20});
  Random random = Random::from_environment();
  Machine machine(disks);
  Points points(machine);
  machine.write_at_random(random, 30);
  points.backup();
  machine.write_at_random(random, 30);
  std::string said;
  const QmpTap tap(machine.folder() + "/tap", machine.qmp(),
                   [&](const std::string& command) { said += command; });
  points.connect_to(tap.path());
  points.backup();
  EXPECT_EQ(count(said, R"("execute":"transaction")"), 1U);
  EXPECT_EQ(count(said, R"("type":"blockdev-snapshot")"), 16U);
  points.check();
  EXPECT_THAT(machine.leftovers(), IsEmpty());
}

TEST(Backup, OverlaysInAnotherFolder) {
  Random random = Random::from_environment();
  const TempFolder overlays;
  Machine machine({qcow2("vda")});
  Points points(machine);
  for (const char* tracking : {"bitmap", "overlay", "overlay", "bitmap"}) {
    machine.write_at_random(random, 20);
    points.backup({"--tracking", tracking, "--overlay-dir", overlays.path()});
  }
  points.check();
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  EXPECT_TRUE(std::filesystem::is_empty(overlays.path()));
}

/// Also of one that lies over another.
TEST(Backup, OverlaysPassByThePageCacheAsTheirImageDoes) {
  for (const bool direct : {true, false}) {
    Machine machine({{.name = "vda", .direct = direct}});
    Points points(machine);
    for (int i = 0; i < 2; ++i) {
      points.backup({"--tracking", "overlay"});
      const auto nodes = machine.command("query-named-block-nodes", {{"flat", true}});
      for (const auto& node : nodes.as_array()) {
        EXPECT_EQ(node.at_pointer("/cache/direct").as_bool(), direct) << node;
      }
    }
  }
}

/// nbdkit's own 16 wake each other, which takes a quarter of the time (bench/README.md).
/// What others will read, and how, is not known.
TEST(Backup, IsServedByOneThreadForEachConnection) {
  Machine machine({{.name = "vda"}});
  const Points points(machine);
  const NbdkitInstead nbdkit(R"(echo "$@" >>"$folder/arguments"
exec "$nbdkit" "$@")");
  run_ok(points.command("backup", {"--quiesce", "no"}), nbdkit.options());
  EXPECT_THAT(text_of_file(nbdkit.folder() + "/arguments"), HasSubstr(" --threads=1 "));
  run_ok(points.command("begin", {"--quiesce", "no"}), nbdkit.options());
  run_ok(points.command("end", {"--failure"}));
  EXPECT_EQ(count(text_of_file(nbdkit.folder() + "/arguments"), "--threads"), 1U);
}

/// There the plugin announces in vain, and only reads at the same time help.
TEST(Backup, IsServedByNbdkitsOwnThreadsWhereTheImageIsOnFuse) {
  if (!FuseMount::is_possible())
    GTEST_SKIP() << "no access to /dev/fuse";
  const TempFolder folder;
  create_image(folder / "golden.qcow2", "qcow2", 32 << 20);
  qemu_io(folder / "golden.qcow2", "qcow2", {"write -P 3 1M 5M"});
  const NbdServer golden = NbdServer::nbdkit("file", {folder / "golden.qcow2"}, {"--readonly"});
  const FuseMount mount(golden.uri());
  Machine machine({{.name = "vda", .backing = mount.file()}});
  Points points(machine);
  const NbdkitInstead nbdkit(R"(echo "$@" >>"$folder/arguments"
exec "$nbdkit" "$@")");
  run_ok(points.command("backup", {"--quiesce", "no"}), nbdkit.options());
  const std::string arguments = text_of_file(nbdkit.folder() + "/arguments");
  EXPECT_THAT(arguments, HasSubstr(" packed=on"));
  EXPECT_THAT(arguments, Not(HasSubstr("--threads")));
}

TEST(Backup, DryRunTouchesNothing) {
  Machine machine({qcow2("vda")});
  Points points(machine);
  const std::string plan = run_ok(points.command("backup", {"--dry-run"}));
  EXPECT_THAT(plan, HasSubstr("vda"));
  EXPECT_THAT(plan, HasSubstr("full"));
  EXPECT_FALSE(std::filesystem::exists(points.repository()));
  EXPECT_THAT(machine.leftovers(), IsEmpty());
}

}  // namespace
}  // namespace nbdelta::testing
