#include <unistd.h>

#include <csignal>
#include <fstream>

#include "tests/nbdkit-plugin/plugin_test.hpp"

namespace nbdelta::testing {
namespace {

using Lock = PluginTest;

Outcome try_write(const std::string& image) {
  return run({"qemu-io", "-f", "qcow2", "-c", "write 0 64k", image});
}

/// What a storage daemon answers to block-commit of overlay.qcow2 into `base`.
std::string block_commit(const std::string& base, const std::string& overlay) {
  return run_ok({"qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "m", "--blockdev",
                 "file,node-name=bf,auto-read-only=on,filename=" + base, "--blockdev",
                 "qcow2,node-name=base,file=bf,auto-read-only=on,read-only=on", "--blockdev",
                 "qcow2,node-name=top,file.driver=file,backing=base,file.filename=" + overlay},
                {.input = R"({"execute":"qmp_capabilities"}
{"execute":"block-commit","arguments":{"job-id":"j","device":"top","base-node":"base"},"id":"commit"}
{"execute":"quit"}
)",
                 .environment = {},
                 .folder = {}});
}

TEST_F(Lock, QemuIsRefusedTheWriteUntilThePluginStops) {
  make_changed_disk();
  {
    NbdServer server = NbdServer::delta({disk});
    const Outcome refused = try_write(disk);
    EXPECT_NE(refused.status, 0);
    EXPECT_THAT(refused.err, HasSubstr("Failed to get \"write\" lock"));
    EXPECT_EQ(server.stop().status, 0);
  }
  EXPECT_EQ(try_write(disk).status, 0);
}

TEST_F(Lock, StorageDaemonIsRefusedTheWrite) {
  make_changed_disk();
  const Command daemon{"--blockdev", "qcow2,node-name=d,file.driver=file,file.filename=" + disk};
  {
    const NbdServer server = NbdServer::delta({disk});
    try {
      NbdServer::storage_daemon(daemon);
      ADD_FAILURE() << "the daemon has the image open for writing";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("Failed to get \"write\" lock"));
    }
    // Reading is allowed to others.
    EXPECT_EQ(run({"qemu-img", "map", "-f", "qcow2", disk}).status, 0);
  }
  EXPECT_NO_THROW(NbdServer::storage_daemon(daemon));
}

TEST_F(Lock, BlockCommitIntoTheServedImageIsRefused) {
  make_changed_disk();
  const std::string overlay = folder / "overlay.qcow2";
  create_overlay(overlay, disk, "qcow2");
  {
    const NbdServer server = NbdServer::delta({disk});
    const std::string reply = block_commit(disk, overlay);
    EXPECT_THAT(reply, HasSubstr("Failed to get \\\"write\\\" lock"));
    EXPECT_THAT(reply, HasSubstr("GenericError"));
    EXPECT_EQ(difference(disk, "qcow2", server.uri(), "raw"), "");
  }
  const std::string reply = block_commit(disk, overlay);
  EXPECT_EQ(reply.find("\"error\""), std::string::npos) << reply;
}

TEST_F(Lock, LayersBehindTheImageAreFencedToo) {
  const std::string base = folder / "base.qcow2";
  const std::string data = folder / "data.raw";
  create_image(base, "qcow2", kMiB, "data_file=" + data);
  create_overlay(disk, base, "qcow2");
  for (const char* direct : {"direct=off", "direct=on"}) {
    const NbdServer server = NbdServer::delta({disk, "backing=" + folder.path(), direct});
    EXPECT_THAT(try_write(disk).err, HasSubstr("Failed to get \"write\" lock"));
    EXPECT_THAT(try_write(base).err, HasSubstr("Failed to get \"write\" lock"));
    EXPECT_THAT(run({"qemu-io", "-f", "raw", "-c", "write 0 64k", data}).err,
                HasSubstr("Failed to get \"write\" lock"));
  }
  EXPECT_EQ(try_write(base).status, 0);
}

TEST_F(Lock, ImageThatQemuHasOpenForWritingIsRefused) {
  make_changed_disk();
  const std::string base = folder / "base.raw";
  create_image(base, "raw", kMiB);
  const std::string overlay = folder / "overlay.qcow2";
  create_overlay(overlay, base, "raw");
  const NbdServer daemon = NbdServer::storage_daemon(
      {"--blockdev", "qcow2,node-name=d,file.driver=file,file.filename=" + disk, "--blockdev",
       "file,node-name=r,filename=" + base, "--export", "nbd,id=e,node-name=d,writable=on",
       "--export", "nbd,id=f,node-name=r,writable=on"});
  EXPECT_THAT(refusal({disk}), HasSubstr("disk.qcow2: another process has it open for writing"));
  EXPECT_THAT(refusal({base, "format=raw"}), HasSubstr("base.raw: another process has it open"));
  EXPECT_THAT(refusal({overlay, "backing=" + folder.path()}),
              HasSubstr("base.raw: another process has it open for writing"));
  EXPECT_TRUE(try_delta({disk, "lock=off"}).ok());
}

TEST_F(Lock, QemuThatOnlyReadsIsNoHindrance) {
  make_changed_disk();
  const NbdServer daemon = NbdServer::storage_daemon(
      {"--blockdev", "qcow2,node-name=d,read-only=on,file.driver=file,file.filename=" + disk,
       "--export", "nbd,id=e,node-name=d,name=d"});
  const NbdServer first = NbdServer::delta({disk});
  const NbdServer second = NbdServer::delta({disk});
  EXPECT_EQ(difference(daemon.uri("d"), "raw", first.uri(), "raw"), "");
  EXPECT_EQ(difference(second.uri(), "raw", first.uri(), "raw"), "");
}

TEST_F(Lock, OffTakesNone) {
  make_changed_disk();
  const NbdServer server = NbdServer::delta({disk, "lock=off"});
  EXPECT_EQ(try_write(disk).status, 0);
}

TEST_F(Lock, IsKeptInTheBackground) {
  make_changed_disk();
  const std::string pid_file = folder / "pid";
  Command command = nbdkit_command();
  command.insert(command.end(),
                 {"--unix", folder / "socket", "--pidfile", pid_file, delta_plugin(), disk});
  run_ok(command);
  pid_t pid = 0;  // the child writes it when it is ready
  for (int i = 0; i < 1000 && !(std::ifstream(pid_file) >> pid); ++i)
    ::usleep(10'000);
  ASSERT_GT(pid, 1);
  EXPECT_THAT(try_write(disk).err, HasSubstr("Failed to get \"write\" lock"));
  ::kill(pid, SIGTERM);
  for (int i = 0; i < 1000 && ::kill(pid, 0) == 0; ++i)
    ::usleep(10'000);
  EXPECT_EQ(try_write(disk).status, 0);
}

}  // namespace
}  // namespace nbdelta::testing
