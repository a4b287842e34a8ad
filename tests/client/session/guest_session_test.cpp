#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <thread>

#include "tests/client/client_run.hpp"
#include "tests/client/session/session_test.hpp"
#include "tests/guest/check.hpp"
#include "tests/guest/guest.hpp"

/// Backups of a real guest: Debian's kernel and agent, ext4, a writer that logs what it does.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
namespace json = boost::json;

constexpr std::uint64_t kDiskSize = std::uint64_t{96} << 20;

GuestDisk disk(const std::string& name, const std::string& format, GuestDisk::Use use,
               GuestDisk::Attach attach = GuestDisk::Attach::blockdev) {
  return {.path = {}, .format = format, .use = use, .attach = attach, .name = name};
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// A restore point, and which operations of the guest it must and must not have.
struct Taken {
  std::string point;
  std::uint64_t done_before = 0;
  std::uint64_t not_after = 0;
  std::string consistency;
};

class GuestSession {
 public:
  explicit GuestSession(std::vector<GuestDisk> disks, const GuestOptions& options = {})
      : disks_(std::move(disks)) {
    fs::create_directory(folder_ / "guest");
    for (GuestDisk& each : disks_) {
      each.path = folder_ / (each.name + "." + each.format);
      make_disk(each, kDiskSize);
    }
    guest_.emplace(folder_ / "guest", disks_, options);
    guest_->wait_until_ready();
  }

  Guest& guest() { return *guest_; }
  const std::string& folder() const { return folder_.path(); }
  const std::vector<GuestDisk>& disks() const { return disks_; }
  std::string repository() const { return folder_ / "repo"; }

  Command command(const std::string& name, const Command& more = {}) {
    Command words = nbdelta_command({name, "--qmp", guest_->qmp(), "--agent", guest_->agent(),
                                     "--vm", "vm", "--to", repository()});
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  json::value backup(const Command& more = {}) {
    Command words = command("backup", {"--json"});
    words.insert(words.end(), more.begin(), more.end());
    Taken taken;
    taken.done_before = first_not_done(guest_->operations());
    const std::size_t log_before = guest_->operation_log().size();
    const json::value result = json::parse(run_ok(words, {}, 180s));
    taken.not_after = last_started(guest_->operations());
    taken.point = std::string(result.at("point").as_string());
    taken.consistency = std::string(result.at("consistency").as_string());
    const json::value& window = result.at("window");
    const auto at = [&](const char* name) {
      const json::value* value = window.as_object().if_contains(name);
      return value == nullptr ? 0.0 : static_cast<double>(value->as_int64()) / 1000;
    };
    const double length = at("thaw-answered-us") - at("freeze-sent-us");
    const double agent = at("freeze-answered-us") - at("freeze-sent-us") + at("thaw-answered-us") -
                         at("thaw-sent-us");
    const double qemu = at("switch-answered-us") - at("switch-sent-us");
    own_.push_back(length - agent - qemu);
    std::cout << fmt::format(
        "  {:<18} {:<12} window {:6.1f} ms: agent {:6.1f}, QEMU {:5.1f}, nbdelta {:.3f}; the "
        "guest's "
        "longest stall {:6.1f} ms\n",
        taken.point, taken.consistency, length, agent, qemu, own_.back(),
        static_cast<double>(longest_stall(guest_->operation_log(), log_before).count()) / 1000);
    taken_.push_back(taken);
    return result;
  }

  /// Every restore point is one instant of the guest, and its file systems are clean.
  void check_points() {
    const auto operations = guest_->operations();
    for (const Taken& taken : taken_) {
      std::vector<std::string> blocks;
      for (const GuestDisk& each : disks_) {
        const std::string raw = folder_ / (each.name + ".restored");
        qemu_img({"convert", "-f", "qcow2", "-O", "raw",
                  repository() + "/vm/" + taken.point + "/" + each.name + ".qcow2", raw});
        if (each.use == GuestDisk::Use::blocks)
          blocks.push_back(raw);
        else
          EXPECT_THAT(check_file_system(raw), IsEmpty()) << taken.point << ", " << each.name;
      }
      EXPECT_THAT(check_instant(blocks, operations, taken.done_before, taken.not_after), IsEmpty())
          << taken.point;
    }
  }

  /// After the guest was killed or has ended: the images themselves.
  void check_images() {
    std::vector<std::string> blocks;
    for (const GuestDisk& each : disks_) {
      const std::string raw = folder_ / (each.name + ".final");
      qemu_img({"convert", "-f", each.format, "-O", "raw", each.path, raw});
      if (each.use == GuestDisk::Use::blocks)
        blocks.push_back(raw);
      else
        EXPECT_THAT(check_file_system(raw), IsEmpty()) << each.name;
    }
    EXPECT_THAT(check_nothing_lost(blocks, guest_->operations()), IsEmpty());
  }

  std::vector<std::string> leftovers() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder()))
      if (entry.path().filename().string().starts_with("nbdelta-"))
        found.push_back(entry.path().filename());
    return found;
  }

  const std::vector<double>& own_times() const { return own_; }

 private:
  TempFolder folder_;
  std::vector<GuestDisk> disks_;
  std::optional<Guest> guest_;
  std::vector<Taken> taken_;
  std::vector<double> own_;
};

using Use = GuestDisk::Use;
using Attach = GuestDisk::Attach;

TEST(GuestSession, OneDiskByBitmap) {
  GuestSession session({disk("vda", "qcow2", Use::file_system)});
  for (int i = 0; i < 5; ++i) {
    const json::value result = session.backup(i % 2 == 0 ? Command{} : Command{"--presync"});
    EXPECT_EQ(result.at("consistency").as_string(), "application");
    EXPECT_EQ(type_of(result), i == 0 ? "full" : "incremental");
  }
  session.check_points();
  EXPECT_THAT(session.leftovers(), IsEmpty());
  session.guest().shut_down();
  session.check_images();
}

class FourDisks : public ::testing::TestWithParam<const char*> {};

TEST_P(FourDisks, AreOneInstant) {
  GuestSession session({disk("vda", "qcow2", Use::file_system), disk("vdb", "raw", Use::blocks),
                        disk("vdc", "qcow2", Use::blocks, Attach::drive),
                        disk("vdd", "raw", Use::file_system)});
  for (int i = 0; i < 4; ++i) {
    const json::value result = session.backup({"--tracking", GetParam()});
    EXPECT_EQ(result.at("frozen-file-systems").as_int64(), 2);
    EXPECT_EQ(result.at("type").as_string(), i == 0 ? "full" : "incremental");
    std::this_thread::sleep_for(300ms);
  }
  session.check_points();
}

INSTANTIATE_TEST_SUITE_P(GuestSession, FourDisks, ::testing::Values("bitmap", "overlay"),
                         [](const auto& row) { return std::string(row.param); });

/// What a session adds to the window itself.
TEST(GuestSession, AddsLessThanAMillisecondToTheWindow) {
  GuestSession session({disk("vda", "qcow2", Use::file_system)}, {.rate = 50});
  for (int i = 0; i < 20; ++i)
    session.backup();
  std::cout << fmt::format("  nbdelta's own time in the window: median {:.3f} ms of {}\n",
                           median(session.own_times()), session.own_times().size());
  EXPECT_LT(median(session.own_times()), 1.0);
}

/// An independent copy of the frozen base, by plain cp, is what must be restored.
TEST(GuestSession, EqualsACopyOfTheFrozenBase) {
  GuestSession session({disk("vda", "qcow2", Use::file_system), disk("vdb", "raw", Use::blocks)});
  for (int i = 0; i < 2; ++i) {
    const json::value begun = json::parse(run_ok(session.command("begin", {"--json"})));
    for (std::size_t d = 0; d < 2; ++d) {
      const GuestDisk& each = session.disks()[d];
      const std::string copy = session.folder() + "/copy." + each.format;
      run_ok({"cp", "--sparse=always", each.path, copy});
      const std::string target = fmt::format("{}/{}-{}.qcow2", session.folder(), each.name, i);
      Command words = nbdelta_command(
          {"pull", "--quiet", std::string(begun.at("disks").at(d).at("uri").as_string()), target});
      if (i != 0)
        words.insert(words.end(), {"--base", fmt::format("{}-{}.qcow2", each.name, i - 1)});
      run_ok(words);
      EXPECT_EQ(difference(target, "qcow2", copy, each.format), "");
    }
    run_ok(session.command("end", {"--success"}));
  }
  EXPECT_THAT(session.leftovers(), IsEmpty());
}

/// kill -9 of QEMU in the middle, with the guest writing: nothing that it was told is written may
/// be lost.
TEST(GuestSession, QemuThatIsKilledLosesNothing) {
  for (int point = 0; point < 3; ++point) {
    GuestSession session({disk("vda", "qcow2", Use::file_system), disk("vdb", "raw", Use::blocks)},
                         {.rate = 0});
    session.backup();
    Background nbdelta(session.command("backup"));
    std::this_thread::sleep_for(60ms + point * 100ms);
    session.guest().kill();
    const auto outcome = nbdelta.wait(kDefaultTimeout);
    ASSERT_TRUE(outcome);
    Command recover = nbdelta_command({"recover", "--vm", "vm", "--to", session.repository()});
    for (const GuestDisk& each : session.disks())
      recover.insert(recover.end(), {"--offline", each.path});
    const Outcome recovered = run(recover);
    std::cout << fmt::format("  after {} ms: nbdelta's status {}; recover: {}", 60 + point * 100,
                             outcome->status, recovered.err);
    EXPECT_EQ(recovered.status, 0) << recovered.err;
    EXPECT_THAT(session.leftovers(), IsEmpty());
    session.check_images();
  }
}

/// QEMU (7.2) aborts where a write that waits in it is moved to a raw base. Without ioeventfd the
/// guest's writes come whatever QEMU is at, as those to IDE, AHCI and NVMe disks do.
TEST(GuestSession, CommitsToRawBasesEndNoGuest) {
  GuestSession session({disk("vda", "raw", Use::file_system), disk("vdb", "raw", Use::blocks)},
                       {.rate = 0, .extra_arguments = {"-global", "virtio-blk-pci.ioeventfd=off"}});
  for (int i = 0; i < 8; ++i)
    session.backup({"--tracking", i % 2 == 0 ? "bitmap" : "overlay"});
  EXPECT_TRUE(session.guest().running());
  session.check_points();
}

/// A guest that writes as fast as it can.
TEST(GuestSession, BusyGuest) {
  GuestSession session({disk("vda", "qcow2", Use::file_system), disk("vdb", "qcow2", Use::blocks)},
                       {.rate = 0});
  for (int i = 0; i < 3; ++i)
    session.backup({"--tracking", i == 1 ? "overlay" : "bitmap"});
  session.check_points();
}

}  // namespace
}  // namespace nbdelta::testing
