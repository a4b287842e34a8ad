#include <fmt/format.h>

#include <filesystem>

#include "tests/client/session/watched.hpp"

/// After a session that failed, the next one shows exactly what has changed since the last that did
/// not.
namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

struct Row {
  std::string name;
  std::string format;
  std::string tracking;  // of the session that fails
  bool kept;             // its commit is given up
};

class AfterAFailedSession : public ::testing::TestWithParam<Row> {
 protected:
  /// A session that succeeds: what the copies show together is what the disk holds. Returns its
  /// type.
  std::string copy() {
    const json::value begun = json::parse(run_ok(points_.command("begin", {"--quiesce", "no"})));
    const json::value& exported = begun.at("disks").at(0);
    const bool full = exported.at("type") == "full";
    const std::string file = fmt::format("{}/copy-{}.qcow2", machine_.folder(), ++copies_);
    Command words{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"};
    if (!full)
      words.insert(words.end(), {"-B", previous_, "-F", "qcow2"});
    words.insert(words.end(), {std::string(exported.at("uri").as_string()), file});
    run_ok(words);
    run_ok(points_.command("end", {"--success"}));
    EXPECT_EQ(difference(file, "qcow2", machine_.model(disk_), "raw"), "");
    previous_ = file;
    return std::string(exported.at("type").as_string());
  }

  /// A session that fails.
  void fail_one() {
    run_ok(points_.command("begin", {"--quiesce", "no", "--tracking", GetParam().tracking}));
    machine_.write(disk_, "write -P 3 8M 40M");  // so that READY does not come at once
    run_ok(
        points_.command("end", {"--failure", "--commit-deadline", GetParam().kept ? "0" : "60"}));
    EXPECT_EQ(!machine_.leftovers().empty(), GetParam().kept);
  }

  Machine machine_{{{.name = "vda", .format = GetParam().format, .size = 64 << 20}}};
  Points points_{machine_};
  const MachineDisk& disk_ = machine_.disks().front();
  std::string previous_;
  int copies_ = 0;
};

TEST_P(AfterAFailedSession, ComesAnExactIncremental) {
  machine_.write(disk_, "write -P 1 0 2M");
  copy();
  machine_.write(disk_, "write -P 2 1M 2M");
  fail_one();
  machine_.write(disk_, "write -P 4 50M 1M");
  EXPECT_EQ(copy(), "incremental");
  machine_.write(disk_, "write -P 5 51M 1M");
  EXPECT_EQ(copy(), "incremental");
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

TEST_P(AfterAFailedSession, AnotherThatFailsLosesNothingEither) {
  machine_.write(disk_, "write -P 1 0 2M");
  copy();
  for (int i = 0; i < 2; ++i) {
    machine_.write(disk_, fmt::format("write -P {} {}M 2M", 6 + i, 1 + i));
    fail_one();
  }
  EXPECT_EQ(copy(), "incremental");
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    By, AfterAFailedSession,
    ::testing::Values(Row{"BitmapOnQcow2", "qcow2", "bitmap", false},
                      Row{"BitmapOnQcow2WhoseOverlayIsKept", "qcow2", "bitmap", true},
                      Row{"BitmapOnRaw", "raw", "bitmap", false},
                      Row{"BitmapOnRawWhoseOverlayIsKept", "raw", "bitmap", true},
                      Row{"OverlayOnQcow2", "qcow2", "overlay", false},
                      Row{"OverlayOnQcow2WhichIsKept", "qcow2", "overlay", true},
                      Row{"OverlayOnRaw", "raw", "overlay", false},
                      Row{"OverlayOnRawWhichIsKept", "raw", "overlay", true}),
    [](const auto& row) { return row.param.name; });

class DisabledBitmap : public ::testing::Test {
 protected:
  /// As somebody else does it.
  void disable() {
    const json::value node = machine_.command("query-block").at(0).at("inserted");
    const json::value& bitmap = node.at("dirty-bitmaps").at(0);
    machine_.command("block-dirty-bitmap-disable",
                     {{"node", node.at("node-name")}, {"name", bitmap.at("name")}});
  }

  Machine machine_{{{.name = "vda"}}};
  Points points_{machine_};
};

TEST_F(DisabledBitmap, IsWhyTheNextBackupIsAFull) {
  points_.backup();
  disable();
  machine_.write(machine_.disks().front(), "write -P 1 1M 64k");
  const json::value next = points_.backup();
  EXPECT_EQ(type_of(next), "full");
  EXPECT_THAT(std::string(next.at("disks").at(0).at("reason").as_string()),
              HasSubstr("was disabled and has a gap"));
  points_.check();
}

/// By the time that a session which cannot write its copy has brought the guest back to its base.
TEST_F(DisabledBitmap, IsNotPromisedToGoOn) {
  points_.backup();
  const Command by_overlay{"--quiesce", "no", "--tracking", "overlay"};
  const auto before = [this](QmpTap&, const json::object& command) {
    if (command.at("execute") == "transaction")
      fs::remove_all(points_.vm_folder() + "/0002-incremental");
    else if (command.at("execute") == "blockdev-del")
      disable();
  };
  const Outcome failed = watched(machine_, points_, "backup", by_overlay, before);
  EXPECT_EQ(failed.status, 1);
  EXPECT_THAT(failed.err, HasSubstr("the next backup is a full of vda"));
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

}  // namespace
}  // namespace nbdelta::testing
