#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "tests/client/session/held_backup.hpp"
#include "tests/client/session/session_test.hpp"
#include "tests/client/session/watched.hpp"

/// Two repositories with backups of one guest: neither knows of the other.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;

class TwoRepositories : public ::testing::Test {
 protected:
  json::value begin(Points& points) {
    return json::parse(run_ok(points.command("begin", {"--json", "--quiesce", "no"})));
  }

  /// All bitmaps in QEMU, with whether they record.
  std::vector<std::string> bitmaps() {
    std::vector<std::string> found;
    const json::value nodes = machine_.command("query-named-block-nodes", {{"flat", true}});
    for (const json::value& node : nodes.as_array())
      if (const json::value* each = node.as_object().if_contains("dirty-bitmaps"))
        for (const json::value& bitmap : each->as_array())
          found.push_back(fmt::format("{} {} {}", node.at("node-name").as_string().c_str(),
                                      bitmap.at("name").as_string().c_str(),
                                      bitmap.at("recording").as_bool()));
    std::sort(found.begin(), found.end());
    return found;
  }

  Random random_ = Random::from_environment();
  Machine machine_{{{.name = "vda"}, {.name = "vdb", .format = "raw"}}};
  Points a_{machine_, "a"};
  Points b_{machine_, "b"};
};

TEST_F(TwoRepositories, IncrementalsOfBothAreExact) {
  for (int i = 0; i < 6; ++i) {
    machine_.write_at_random(random_, 10);
    Points& points = i % 3 == 0 ? a_ : b_;  // not simply in turn
    const json::value result = points.backup();
    for (std::size_t disk = 0; disk < 2; ++disk)
      EXPECT_EQ(type_of(result, disk), i == 0 || i == 1 ? "full" : "incremental") << i;
    EXPECT_EQ(bitmaps().size(), i == 0 ? 2U : 4U);
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
  }
  a_.check();
  b_.check();
}

TEST_F(TwoRepositories, AnOpenSessionOfOneIsNotTouchedByTheOther) {
  a_.backup();
  b_.backup();
  machine_.write_at_random(random_, 10);
  // A repository is either begin's or backup's.
  run_ok({"rm", "-r", a_.vm_folder()});
  const std::string model = machine_.model(machine_.disks()[0]);
  const std::string frozen = machine_.folder() + "/frozen";
  run_ok({"cp", "--sparse=always", model, frozen});
  const json::value begun = begin(a_);
  machine_.write_at_random(random_, 10);
  const auto before = machine_.leftovers();
  const auto bitmaps_before = bitmaps();

  for (const Command& more : {Command{}, Command{"--tracking", "overlay"}}) {
    const Outcome backup = run(b_.command("backup", more));
    EXPECT_EQ(backup.status, 3) << backup.err;
    EXPECT_THAT(backup.err, HasSubstr("vda: an overlay of another backup is in place"));
    EXPECT_THAT(backup.err, HasSubstr("end that session, or put it right with 'nbdelta recover'"));
  }
  EXPECT_EQ(run(b_.command("begin")).status, 3);
  EXPECT_EQ(run(b_.command("end", {"--failure"})).status, 3);
  const Outcome recover = run(b_.command("recover"));
  EXPECT_EQ(recover.status, 0);
  EXPECT_THAT(recover.err, HasSubstr("vda: left as it is: it runs on an overlay of another"));
  EXPECT_EQ(machine_.leftovers(), before);
  EXPECT_EQ(bitmaps(), bitmaps_before);

  const std::string uri(begun.at("disks").at(0).at("uri").as_string());
  EXPECT_EQ(difference(uri, "raw", frozen, "raw"), "");  // it is still served
  run_ok(a_.command("end", {"--success"}));
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  const json::value result = b_.backup();
  EXPECT_EQ(type_of(result, 0), "incremental");
  EXPECT_EQ(type_of(result, 1), "incremental");
  b_.check();
  EXPECT_EQ(type_of(begin(a_)), "incremental");
  run_ok(a_.command("end", {"--failure"}));
}

TEST_F(TwoRepositories, OneIsRecoveredAndTheOtherStaysAsItWas) {
  a_.backup();
  b_.backup();
  machine_.write_at_random(random_, 10);
  {
    Background dying(a_.command("backup", {"--quiesce", "no"}));
    while (a_.phase() != "export" && dying.running())
      std::this_thread::sleep_for(1ms);
    dying.signal(SIGKILL);
    dying.wait(10s);
  }
  const auto bitmaps_of_b = [&] {
    auto found = bitmaps();
    const std::string chain(
        json::parse(run_ok({"cat", b_.vm_folder() + "/0001-full/manifest.json"}))
            .at("chain")
            .as_string());
    found.erase(std::remove_if(
                    found.begin(), found.end(),
                    [&](const std::string& each) { return each.find(chain) == std::string::npos; }),
                found.end());
    return found;
  };
  const auto before = bitmaps_of_b();
  EXPECT_EQ(before.size(), 2U);
  run_ok(a_.command("recover"));
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  EXPECT_EQ(bitmaps_of_b(), before);
  EXPECT_EQ(b_.phase(), "no journal");
  machine_.write_at_random(random_, 10);
  for (Points* points : {&b_, &a_}) {
    const json::value result = points->backup();
    EXPECT_EQ(type_of(result, 0), "incremental");
    EXPECT_EQ(type_of(result, 1), "incremental");
    points->check();
  }
}

/// A guest that stays on an overlay of one cannot be backed up to the other.
TEST_F(TwoRepositories, TrackingByOverlayIsForOneAlone) {
  a_.backup({"--tracking", "overlay"});
  const auto before = machine_.leftovers();
  const Outcome backup = run(b_.command("backup"));
  EXPECT_EQ(backup.status, 3);
  EXPECT_THAT(backup.err, HasSubstr("an overlay of another backup is in place"));
  EXPECT_EQ(machine_.leftovers(), before);
  machine_.write_at_random(random_, 10);
  EXPECT_EQ(type_of(a_.backup({"--tracking", "overlay"})), "incremental");
  a_.check();
}

/// Both at the same time, on a guest with two QMP servers.
class TwoAtOnce : public ::testing::Test {
 protected:
  std::vector<std::string> leftovers_of(const Points& points) {
    const json::value journal =
        json::parse(text_of_file(points.vm_folder() + "/nbdelta-session.json"));
    const std::string chain(journal.at("chain").as_string());
    std::vector<std::string> found;
    for (const std::string& each : machine_.leftovers())
      if (each.find(chain) != std::string::npos)
        found.push_back(each);
    return found;
  }

  void expect_both_go_on() {
    machine_.write_at_random(random_, 10);
    for (Points* points : {&a_, &b_}) {
      points->backup();
      points->check();
    }
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
  }

  const TempFolder sockets_;
  Random random_ = Random::from_environment();
  Machine machine_{{{.name = "vda"}, {.name = "vdb", .format = "raw"}},
                   {"-qmp", "unix:" + (sockets_ / "second") + ",server=on,wait=off"}};
  Points a_{machine_, "a"};
  Points b_{machine_, "b"};
};

TEST_F(TwoAtOnce, TheSecondIsRefusedWhileTheFirstHoldsTheGuest) {
  machine_.write_at_random(random_, 10);
  HeldBackup first(a_);
  const auto before = machine_.leftovers();
  // QEMU has one client at a time for each server.
  const Outcome same_server = run(b_.command("backup"));
  EXPECT_EQ(same_server.status, 1);
  EXPECT_THAT(same_server.err, HasSubstr("another client may be connected"));
  b_.connect_to(sockets_ / "second");
  for (const char* name : {"backup", "begin"}) {
    const Outcome other_server = run(b_.command(name));
    EXPECT_EQ(other_server.status, 3);
    EXPECT_THAT(other_server.err, HasSubstr("vda: an overlay of another backup is in place"));
  }
  EXPECT_EQ(run(b_.command("recover")).status, 0);
  EXPECT_EQ(machine_.leftovers(), before);
  const Outcome released = first.release();
  EXPECT_EQ(released.status, 0) << released.err;
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  expect_both_go_on();
}

/// Neither saw the other when it made its plan.
TEST_F(TwoAtOnce, TheOneThatSwitchesLaterFailsAndTouchesNothing) {
  a_.backup();
  machine_.write_at_random(random_, 10);
  b_.connect_to(sockets_ / "second");
  std::vector<std::string> of_b;
  const Outcome late = watched(machine_, a_, "backup", {"--quiesce", "no"},
                               [&](QmpTap&, const json::object& command) {
                                 if (command.at("execute") != "transaction" || !of_b.empty())
                                   return;
                                 run_ok(b_.command("begin", {"--quiesce", "no"}));
                                 machine_.write_at_random(random_, 10);
                                 of_b = leftovers_of(b_);
                               });
  EXPECT_EQ(late.status, 1) << late.err;
  EXPECT_FALSE(of_b.empty());
  EXPECT_EQ(machine_.leftovers(), of_b) << late.err;
  machine_.write_at_random(random_, 10);
  run_ok(b_.command("end", {"--success"}));
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  machine_.write_at_random(random_, 10);
  a_.backup();
  a_.check();
}

/// A repository and its copy go on from one restore point, with one guest: neither may take the
/// other's bitmap for what has changed since its own last one.
class CopiedRepository : public ::testing::TestWithParam<const char*> {};

TEST_P(CopiedRepository, EveryRestorePointOfBothIsExact) {
  Random random = Random::from_environment();
  Machine machine({{.name = "vda"}, {.name = "vdb", .format = "raw"}});
  Points a(machine, "a");
  Points b(machine, "b");
  machine.write_at_random(random, 10);
  a.backup();
  run_ok({"cp", "-a", a.repository(), b.repository()});
  for (const char* which = GetParam(); *which != '\0'; ++which) {
    machine.write_at_random(random, 10);
    (*which == 'A' ? a : b).backup();
  }
  a.check();
  b.check();
  EXPECT_THAT(machine.leftovers(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Then, CopiedRepository, ::testing::Values("ABA", "BAB", "ABABBA"),
                         [](const auto& row) { return std::string(row.param); });

}  // namespace
}  // namespace nbdelta::testing
