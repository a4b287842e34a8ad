#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <thread>

#include "tests/client/session/guest_session.hpp"

/// kill -9 at points spread over a session, with a real guest that is frozen and writes. Each test
/// prints a table of them.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;
using Milliseconds = std::chrono::milliseconds;
using Use = GuestDisk::Use;

std::vector<GuestDisk> two_disks() {
  return {{.format = "qcow2", .use = Use::file_system, .name = "vda"},
          {.format = "raw", .use = Use::blocks, .name = "vdb"}};
}

/// A moment of a session: so long after the journal says that this phase has begun.
struct Moment {
  std::string phase;
  Milliseconds after{0};

  std::string text() const { return fmt::format("{} + {} ms", phase, after.count()); }
};

std::string one_line(std::string text) {
  while (text.ends_with('\n'))
    text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ';');
  return text;
}

std::string types_of(const json::value& manifest) {
  std::string types;
  for (std::size_t i = 0; i < manifest.at("disks").as_array().size(); ++i)
    types += (i == 0 ? "" : ", ") + type_of(manifest, i);
  return types;
}

/// A backup that is disturbed at a moment. It is stopped there until end(), so that what the
/// journal says is how far it has come.
class Disturbed {
 public:
  Disturbed(GuestSession& session, const Moment& moment, const Command& more)
      : nbdelta_(session.command("backup", more)) {
    while (nbdelta_.running() && session.phase() != moment.phase)
      std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(moment.after);
    nbdelta_.signal(SIGSTOP);
    phase_ = session.phase();
  }

  pid_t pid() const { return nbdelta_.pid(); }
  const std::string& phase() const { return phase_; }

  /// How many processes that was.
  std::size_t kill_children(const std::string& name) const {
    const std::vector<pid_t> children = children_of(pid(), name);
    for (const pid_t child : children)
      ::kill(child, SIGKILL);
    return children.size();
  }

  Outcome end() {
    nbdelta_.signal(SIGCONT);
    const auto outcome = nbdelta_.wait(kDefaultTimeout);
    if (!outcome)
      throw std::runtime_error("nbdelta does not end: " + nbdelta_.err());
    return *outcome;
  }

 private:
  Background nbdelta_;
  std::string phase_;
};

constexpr const char* kGuardian = "nbdelta-guard";

enum class Victim { nbdelta, nbdkit, guardian, nbdelta_and_guardian, nbdelta_and_nbdkit };

const char* name_of(Victim victim) {
  switch (victim) {
    case Victim::nbdelta:
      return "nbdelta";
    case Victim::nbdkit:
      return "nbdkit";
    case Victim::guardian:
      return "guardian";
    case Victim::nbdelta_and_guardian:
      return "nbdelta, guardian";
    case Victim::nbdelta_and_nbdkit:
      return "nbdelta, nbdkit";
  }
  return "";
}

/// The guardian first: it must not see nbdelta die.
std::size_t kill_victim(const Disturbed& backup, Victim victim) {
  std::size_t killed = 0;
  if (victim == Victim::guardian || victim == Victim::nbdelta_and_guardian)
    killed += backup.kill_children(kGuardian);
  if (victim == Victim::nbdkit || victim == Victim::nbdelta_and_nbdkit)
    killed += backup.kill_children("nbdkit");
  if (victim == Victim::guardian || victim == Victim::nbdkit)
    return killed;
  ::kill(backup.pid(), SIGKILL);
  return killed + 1;
}

/// A row of the table, and the restore point after it, which shows whether a write was lost.
struct Row {
  std::string text;
  std::string next;
};

class GuestCrash : public ::testing::Test {
 protected:
  /// Throws Error where it does not go on: a frozen guest cannot stop while it writes to files.
  void expect_thawed() {
    session_.guest().control("stop");
    session_.guest().control("start");
  }

  void disturb(Victim victim, const std::string& tracking, const Moment& moment) {
    const Command options{"--tracking", tracking};
    session_.expect_point();
    Disturbed backup(session_, moment, options);
    const std::size_t killed = kill_victim(backup, victim);
    const Outcome outcome = backup.end();
    // Who killed the guardian as well may leave the guest frozen: that is for recover.
    if (victim != Victim::nbdelta_and_guardian)
      expect_thawed();
    session_.take_published();
    const Outcome recovered = run(session_.command("recover"));
    EXPECT_EQ(recovered.status, 0) << recovered.err;
    expect_thawed();
    EXPECT_THAT(run(session_.command("recover")).err, HasSubstr("nothing was left to do"));
    const json::value next = session_.backup(options);
    rows_.push_back({fmt::format("{:<17} {:<15} {:<7} in {:<7} killed {}, status {:3}; next {}; "
                                 "recover: {}",
                                 name_of(victim), moment.text(), tracking, backup.phase(), killed,
                                 outcome.status, types_of(next), one_line(recovered.err)),
                     std::string(next.at("point").as_string())});
    EXPECT_EQ(types_of(next), "incremental, incremental") << rows_.back().text;
    if (tracking == "bitmap") {
      EXPECT_THAT(session_.leftovers(), IsEmpty()) << rows_.back().text;
    }
    killed_ += killed;
  }

  void print_table() {
    auto problems = session_.problems_of_points();
    for (const Row& row : rows_)
      std::cout << fmt::format("  lost {}: {}\n", problems.at(row.next).size(), row.text);
    for (const auto& [point, each] : problems)
      EXPECT_THAT(each, IsEmpty()) << point;
  }

  GuestSession session_{two_disks()};
  std::vector<Row> rows_;
  std::size_t killed_ = 0;
};

TEST_F(GuestCrash, LeavesAGuestThatRunsAndANextBackupThatIsComplete) {
  for (const std::string tracking : {"overlay", "bitmap"}) {
    session_.backup({"--tracking", tracking});
    for (const Moment& moment : {Moment{"prepare"}, Moment{"window", 60ms}, Moment{"window", 150ms},
                                 Moment{"export"}, Moment{"commit", 20ms}})
      disturb(Victim::nbdelta, tracking, moment);
    disturb(Victim::nbdkit, tracking, {"export", 15ms});
    disturb(Victim::nbdelta_and_nbdkit, tracking, {"export", 15ms});
  }
  for (const Moment& moment : {Moment{"window", 5ms}, Moment{"window", 80ms}}) {
    disturb(Victim::guardian, "bitmap", moment);
    disturb(Victim::nbdelta_and_guardian, "bitmap", moment);
  }
  EXPECT_GT(killed_, rows_.size() / 2);
  session_.guest().shut_down();
  session_.check_images();
  print_table();
}

struct End {
  const char* tracking;
  Moment moment;
};

class GuestCrashOfQemu : public ::testing::TestWithParam<End> {};

/// Nothing that the guest was told is written may be lost.
TEST_P(GuestCrashOfQemu, LosesNothingAndTheNextBackupIsComplete) {
  const Command tracking{"--tracking", GetParam().tracking};
  const bool by_overlay = tracking.back() == "overlay";
  GuestSession session(two_disks(), {.rate = 0});
  session.backup(tracking);
  session.expect_point();
  Disturbed backup(session, GetParam().moment, tracking);
  // In the window as where the host dies: nbdelta would look for a thawed guest for a minute.
  if (backup.phase() == "window")
    kill_victim(backup, Victim::nbdelta_and_guardian);
  session.guest().kill();
  const Outcome outcome = backup.end();
  session.take_published();
  Command recover = nbdelta_command({"recover", "--vm", "vm", "--to", session.repository()});
  for (const GuestDisk& each : session.disks())
    recover.insert(recover.end(), {"--offline", each.path});
  const Outcome recovered = by_overlay ? Outcome{} : run(recover);
  EXPECT_EQ(recovered.status, 0) << recovered.err;
  if (!by_overlay) {
    EXPECT_THAT(session.leftovers(), IsEmpty());
  }
  session.check_images();
  session.check_points();

  session.start_without_guest();
  const Command plain = joined(tracking, {"--quiesce", "no", "--json"});
  const json::value next = json::parse(run_ok(session.command("backup", plain)));
  std::cout << fmt::format("  QEMU {} {} in {}: status {}; next {}; recover: {}\n",
                           GetParam().moment.text(), tracking.back(), backup.phase(),
                           outcome.status, types_of(next), one_line(recovered.err));
  // A raw image's bitmap has ended with QEMU; a qcow2 image's is sound where an overlay lay over
  // it.
  if (by_overlay || backup.phase() == "export") {
    EXPECT_EQ(type_of(next, 0), "incremental");
  }
  EXPECT_EQ(type_of(next, 1), by_overlay ? "incremental" : "full");
  session.guest().kill();
  for (const GuestDisk& each : session.disks()) {
    const GuestDisk last = session.current(each);
    EXPECT_EQ(difference(fmt::format("{}/{}/{}.qcow2", session.vm_folder(),
                                     next.at("point").as_string().c_str(), each.name),
                         "qcow2", last.path, last.format),
              "");
  }
}

INSTANTIATE_TEST_SUITE_P(Kill9, GuestCrashOfQemu,
                         ::testing::Values(End{"bitmap", {"window", 100ms}},
                                           End{"bitmap", {"export", 10ms}},
                                           End{"bitmap", {"commit", 30ms}},
                                           End{"overlay", {"commit", 30ms}}),
                         [](const auto& row) {
                           return fmt::format("{}_{}", row.param.tracking, row.param.moment.phase);
                         });

}  // namespace
}  // namespace nbdelta::testing
