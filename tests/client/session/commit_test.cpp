#include <chrono>
#include <thread>

#include "tests/client/session/qmp_tap.hpp"
#include "tests/client/session/session_test.hpp"

/// Somebody else ends the job that commits the overlay: the guest stays on the overlay, which must
/// not be taken for committed.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;

struct Meddling {
  std::string name;
  std::string before;  // of nbdelta's commands, the first of these after block-commit
  std::string command;
  json::object arguments;
  std::string then;  // the job's status
  std::string message;
};

class Commit : public ::testing::TestWithParam<Meddling> {
 protected:
  /// The status of the one job there is.
  std::string job_status() {
    const json::value jobs = machine_.command("query-jobs");
    return jobs.as_array().empty() ? "none" : std::string(jobs.at(0).at("status").as_string());
  }
  void wait_for(const std::string& status) {
    for (int i = 0; i < 1000 && job_status() != status; ++i)
      std::this_thread::sleep_for(5ms);
    EXPECT_EQ(job_status(), status);
  }

  /// In the tap's thread, while the test waits for nbdelta.
  void meddle(const std::string& command) {
    if (command.find("\"block-commit\"") != std::string::npos)
      committing_ = true;
    if (!committing_ || done_ || command.find("\"" + GetParam().before + "\"") == std::string::npos)
      return;
    done_ = true;
    wait_for("ready");
    const json::value jobs = machine_.command("query-jobs");
    json::object arguments = GetParam().arguments;
    arguments[GetParam().command == "job-cancel" ? "id" : "device"] = jobs.at(0).at("id");
    machine_.command(GetParam().command, arguments);
    wait_for(GetParam().then);
  }

  Random random_ = Random::from_environment();
  Machine machine_{{{.name = "vda"}}};
  Points points_{machine_};
  bool committing_ = false;
  bool done_ = false;
};

TEST_P(Commit, ThatWasEndedBySomebodyElseIsNotTakenForOne) {
  machine_.write_at_random(random_, 10);
  points_.backup();
  machine_.write_at_random(random_, 10);
  run_ok(points_.command("begin", {"--quiesce", "no", "--full"}));
  machine_.write_at_random(random_, 10);  // to the overlay
  {
    const QmpTap tap(machine_.folder() + "/tap", machine_.qmp(),
                     [this](const std::string& command) { meddle(command); });
    points_.connect_to(tap.path());
    const Outcome end = run(points_.command("end", {"--failure"}));
    EXPECT_TRUE(done_);
    EXPECT_EQ(end.status, 1);
    EXPECT_THAT(end.err, HasSubstr(GetParam().message));
    EXPECT_THAT(end.err, HasSubstr("run 'nbdelta recover'"));
  }
  points_.connect_to(machine_.qmp());
  machine_.write_at_random(random_, 10);  // the guest is on its overlay still
  EXPECT_THAT(machine_.leftovers(), Not(IsEmpty()));
  run_ok(points_.command("recover"));
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  machine_.write_at_random(random_, 5);
  EXPECT_EQ(type_of(points_.backup()), "incremental");
  points_.check();
  machine_.quit();
  const MachineDisk& disk = machine_.disks()[0];
  EXPECT_EQ(difference(machine_.image(disk), "qcow2", machine_.model(disk), "raw"), "");
}

INSTANTIATE_TEST_SUITE_P(
    Ended, Commit,
    ::testing::Values(
        // A ready job that is cancelled without force ends well, and the guest stays where it was.
        Meddling{"BeforeItIsSeenToBeReady",
                 "query-jobs",
                 "block-job-cancel",
                 {},
                 "pending",
                 "somebody else has ended the job"},
        Meddling{"BeforeItIsCompleted",
                 "job-complete",
                 "block-job-cancel",
                 {},
                 "pending",
                 "job-complete"},
        Meddling{"ByForce", "query-jobs", "job-cancel", {}, "concluded", "the commit failed"}),
    [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace nbdelta::testing
