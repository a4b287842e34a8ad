#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/client/session/small_file_system.hpp"
#include "tests/sim/live.hpp"

/// Storage of the fake guest that is full. Needs root.
namespace nbdelta::testing {
namespace {

using ::testing::HasSubstr;

constexpr const char* kFast = R"({
  "disks": [{"name": "vda", "size": "64 MiB"}],
  "loads": [{"pattern": "uniform", "rate": "16 MiB/s", "sync-every": 16}]})";
constexpr const char* kSlow = R"({
  "disks": [{"name": "vda", "size": "64 MiB"}],
  "loads": [{"pattern": "uniform", "rate": "1 MiB/s", "direct": true}]})";

void wait_until_paused(LiveSim& sim) {
  sim.wait_until("its guest's pause", [&] {
    return sim.process().err().find("the guest is paused") != std::string::npos;
  });
}

TEST(LiveSpace, AGuestWhoseOverlayIsFullWaitsAndGoesOn) {
  SmallFileSystem small("8M");
  LiveSim sim(kFast);
  run_ok(sim.connected("begin", {"--overlay-dir", small.path()}));
  wait_until_paused(sim);
  small.resize("200M");
  sim.wait_for_writes(200);
  run_ok(sim.connected("end", {"--failure"}));
  sim.backup();
  EXPECT_EQ(sim.wrong({sim.points()}), "");
  EXPECT_EQ(sim.stop().status, 0);
  EXPECT_EQ(sim.image_complaints(), "");
  EXPECT_THAT(sim.check({"vda=" + sim.image("vda.qcow2")}).out, HasSubstr("the end of the record"));
}

/// The switch stores the bitmaps of the base: where there is no room for them, nothing is switched.
TEST(LiveSpace, ASwitchThatCannotStoreBitmapsIsRefusedAsAWhole) {
  SmallFileSystem small("100M");
  LiveSim sim(kSlow);
  sim.stop();
  const std::string image = sim.image("vda.qcow2");
  run_ok({"mv", image, small.path() + "/vda.qcow2"});
  run_ok({"ln", "-s", small.path() + "/vda.qcow2", image});
  sim.start();
  sim.backup({"--overlay-dir", sim.guest()});
  run({"dd", "if=/dev/zero", "of=" + small.path() + "/filler", "bs=4k"});
  wait_until_paused(sim);
  const Outcome refused = run(sim.connected("backup", {"--overlay-dir", sim.guest()}));
  EXPECT_EQ(refused.status, 1) << refused.err;
  EXPECT_THAT(refused.err, HasSubstr("No space left on device"));
  run_ok({"rm", small.path() + "/filler"});
  sim.wait_for_writes(50);
  EXPECT_EQ(sim.backup({"--overlay-dir", sim.guest()}).at_pointer("/disks/0/type").as_string(),
            "incremental");
  EXPECT_EQ(sim.wrong({sim.points()}), "");
  EXPECT_EQ(sim.stop().status, 0);
  EXPECT_EQ(sim.image_complaints(), "");
}

}  // namespace
}  // namespace nbdelta::testing
