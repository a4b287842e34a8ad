#include <gtest/gtest.h>

#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "tests/support/environment_variable.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/process.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/random.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using std::chrono::milliseconds;

template <class Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no Error";
}

TEST(TempFolder, GoesWithAllThatIsInIt) {
  std::string path;
  {
    const TempFolder folder;
    path = folder.path();
    std::filesystem::create_directories(folder / "a/b");
    EXPECT_TRUE(std::filesystem::exists(path + "/a/b"));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(Random, SameSeedSameSequence) {
  Random a(7);
  Random b(7);
  std::vector<std::byte> x(13);
  std::vector<std::byte> y(13);
  a.fill(x);
  b.fill(y);
  EXPECT_EQ(x, y);
  EXPECT_EQ(a.next(), b.next());
  EXPECT_EQ(Random(1).next(), 2469588189546311528U);  // the standard fixes the engine's numbers
}

TEST(Process, CapturesOutputsAndStatus) {
  const Outcome outcome = run({"sh", "-c", "cat; echo $GREETING >&2; pwd; exit 3"},
                              {.input = "in", .environment = {"GREETING=hello"}, .folder = "/usr"});
  EXPECT_EQ(outcome.status, 3);
  EXPECT_EQ(outcome.out, "in/usr\n");
  EXPECT_EQ(outcome.err, "hello\n");
}

TEST(Process, SignalCountsFrom128) {
  EXPECT_EQ(run({"sh", "-c", "kill -9 $$"}).status, 128 + SIGKILL);
}

TEST(Process, FailureShowsWhatWasWritten) {
  const std::string message = message_of([] { run_ok({"sh", "-c", "echo why >&2; exit 1"}); });
  EXPECT_NE(message.find("exit status 1; it wrote:\nwhy\n"), std::string::npos) << message;
}

TEST(Process, MissingProgramNamesItsPackage) {
  const EnvironmentVariable path("PATH", "/nowhere");
  const std::string message = message_of([] { run({"qemu-img", "--version"}); });
  EXPECT_NE(message.find("package qemu-utils"), std::string::npos) << message;
}

TEST(Process, IsKilledAtItsTimeout) {
  const std::string message = message_of([] { run({"sleep", "100"}, {}, milliseconds(50)); });
  EXPECT_NE(message.find("still runs after 50 ms"), std::string::npos) << message;
}

TEST(Process, BackgroundEndsWithTheObject) {
  pid_t pid = -1;
  {
    Background sleeper({"sleep", "100"});
    pid = sleeper.pid();
    EXPECT_TRUE(sleeper.running());
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  EXPECT_EQ(::kill(pid, 0), -1);
}

TEST(NbdServer, OfEveryKindServes) {
  const TempFolder folder;
  const std::string image = folder / "disk.qcow2";
  create_image(image, "qcow2", kMiB);
  qemu_io(image, "qcow2", {"write -q -P 7 0 64k"});

  const std::vector<NbdExtent> map{{0, 64 * kKiB, 0}, {64 * kKiB, kMiB - 64 * kKiB, 3}};
  const NbdServer qemu_nbd = NbdServer::qemu_nbd({"-r", "-f", "qcow2", "-x", "a:b", image});
  EXPECT_EQ(nbdinfo_map(qemu_nbd.uri("a:b")), map);

  const NbdServer daemon = NbdServer::storage_daemon(
      {"--blockdev", "qcow2,node-name=disk,read-only=on,file.driver=file,file.filename=" + image,
       "--export", "nbd,id=e,node-name=disk,name=disk"});
  EXPECT_EQ(nbdinfo_map(daemon.uri("disk")), map);
  EXPECT_EQ(difference(image, "qcow2", daemon.uri("disk"), "raw"), "");

  const NbdServer memory = NbdServer::nbdkit("memory", {"1M"}, {"--filter=noextents"});
  EXPECT_EQ(nbdinfo_map(memory.uri()), (std::vector<NbdExtent>{{0, kMiB, 0}}));
  EXPECT_NE(difference(image, "qcow2", memory.uri(), "raw"), "");
}

TEST(NbdServer, ThatDoesNotStartSaysWhy) {
  const std::string message = message_of([] { NbdServer::nbdkit("file", {"/nowhere"}); });
  EXPECT_NE(message.find("/nowhere: No such file"), std::string::npos) << message;
}

TEST(Qemu, FailedCommandsAreErrors) {
  const TempFolder folder;
  const std::string image = folder / "disk.raw";
  create_image(image, "raw", kMiB);
  EXPECT_NE(message_of([&] { qemu_io(image, "raw", {"write 2M 64k"}); }), "no Error");
  EXPECT_NE(message_of([&] { qemu_io(image, "raw", {"read -P 1 0 64k"}); }), "no Error");
  EXPECT_NE(message_of([&] { qemu_img({"info", folder / "none"}); }), "no Error");
}

}  // namespace
}  // namespace nbdelta::testing
