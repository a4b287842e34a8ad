#include "tests/client/session/guest_session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <thread>

#include "tests/client/session/small_file_system.hpp"

/// Backups of a real guest: Debian's kernel and agent, ext4, a writer that logs what it does.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;

GuestDisk disk(const std::string& name, const std::string& format, GuestDisk::Use use,
               GuestDisk::Attach attach = GuestDisk::Attach::blockdev) {
  return {.path = {}, .format = format, .use = use, .attach = attach, .name = name};
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

using Use = GuestDisk::Use;
using Attach = GuestDisk::Attach;

struct Matrix {
  const char* name;
  std::vector<GuestDisk> disks;
};

class Scheme : public ::testing::TestWithParam<Matrix> {};

/// Fulls and incrementals in both trackings, each beside plain copies of what was frozen.
TEST_P(Scheme, EveryPointEqualsACopyOfTheFrozenBase) {
  GuestSession session(GetParam().disks);
  for (const char* tracking : {"overlay", "bitmap"}) {
    for (const Command& more : {Command{"--full"}, Command{}, Command{"--presync"}}) {
      const json::value result =
          session.backup_beside_copies(joined({"--tracking", tracking}, more));
      EXPECT_EQ(result.at("consistency").as_string(), "application") << result;
      for (std::size_t i = 0; i < GetParam().disks.size(); ++i)
        EXPECT_EQ(type_of(result, i), more == Command{"--full"} ? "full" : "incremental") << result;
    }
  }
  EXPECT_THAT(session.leftovers(), IsEmpty());
  session.guest().shut_down();
  session.check_images();
  session.check_points();
}

std::vector<GuestDisk> four(const std::string& format) {
  return {disk("vda", format, Use::file_system), disk("vdb", format, Use::blocks),
          disk("vdc", format, Use::blocks, Attach::drive), disk("vdd", format, Use::file_system)};
}

INSTANTIATE_TEST_SUITE_P(
    GuestSession, Scheme,
    ::testing::Values(Matrix{"OneQcow2", {disk("vda", "qcow2", Use::file_system)}},
                      Matrix{"OneRaw", {disk("vda", "raw", Use::file_system)}},
                      Matrix{"FourQcow2", four("qcow2")}, Matrix{"FourRaw", four("raw")}),
    [](const auto& row) { return std::string(row.param.name); });

/// Qcow2 and raw disks of one guest.
TEST(GuestSession, DisksOfTwoFormatsAreOneInstant) {
  GuestSession session({disk("vda", "qcow2", Use::file_system), disk("vdb", "raw", Use::blocks),
                        disk("vdc", "qcow2", Use::blocks, Attach::drive),
                        disk("vdd", "raw", Use::file_system)});
  for (const char* tracking : {"bitmap", "bitmap", "overlay", "overlay", "bitmap"}) {
    const json::value result = session.backup({"--tracking", tracking});
    EXPECT_EQ(result.at("frozen-file-systems").as_int64(), 2);
  }
  session.guest().shut_down();
  session.check_points();
}

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

/// Its overlay grows until nothing is free; the commit makes room.
TEST(GuestSession, GoesOnAfterItsOverlayHadNoSpace) {
  const SmallFileSystem small("4m");
  for (const char* format : {"qcow2", "raw"}) {
    GuestSession session({disk("vda", format, Use::blocks)}, {.rate = 0});
    const auto status = [&] {
      const Command words = nbdelta_command({"status", "--json", "--qmp", session.guest().qmp()});
      return std::string(json::parse(run_ok(words)).at("guest").as_string());
    };
    run_ok(session.command("begin", {"--overlay-dir", small.path()}));
    while (status() != "io-error")
      std::this_thread::sleep_for(100ms);
    const Outcome end = run(session.command("end", {"--success"}));
    EXPECT_EQ(end.status, 0) << end.err;
    EXPECT_THAT(end.err, HasSubstr("was let go on"));
    EXPECT_EQ(status(), "running");
    const std::size_t before = session.guest().operations().size();
    while (session.guest().operations().size() < before + 100)
      std::this_thread::sleep_for(10ms);
    session.guest().shut_down();
    session.check_images();
  }
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
