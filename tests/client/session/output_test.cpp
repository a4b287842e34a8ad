#include <fmt/format.h>
#include <signal.h>

#include <chrono>
#include <thread>

#include "tests/client/session/held_backup.hpp"
#include "tests/client/session/session_test.hpp"

/// What scripts and people read.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;

class Output : public ::testing::Test {
 protected:
  /// A command that fails with this status; its JSON has stderr's message.
  void expect_failure(const Command& words, int status, const std::string& result) {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.status, status) << outcome.err;
    const json::value object = json::parse(outcome.out);
    EXPECT_EQ(object.at("result").as_string(), result);
    EXPECT_THAT(outcome.err, HasSubstr(object.at("error").as_string().c_str()));
  }

  Machine machine_{{{.name = "vda"}, {.name = "vdb"}}};
  Points points_{machine_};
};

TEST_F(Output, FailuresAreObjectsToo) {
  const std::string nowhere = machine_.folder() + "/nowhere";
  for (const char* name : {"backup", "begin", "end", "recover", "status"}) {
    Command words =
        nbdelta_command({name, "--json", "--qmp", nowhere, "--vm", "vm", "--to", nowhere});
    const bool end = std::string(name) == "end";
    if (end)
      words.push_back("--success");
    expect_failure(words, end ? 3 : 1, end ? "refused" : "failed");
  }
  expect_failure(points_.command("begin", {"--json", "--require-incremental"}), 3, "refused");
  expect_failure(joined(points_.offline_recovery(nowhere + ".qcow2"), {"--json"}), 1, "failed");
  EXPECT_EQ(run(nbdelta_command({"begin", "--json"})).out, "");
}

TEST_F(Output, OfAnInterruptedBackup) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    Background nbdelta(points_.command("backup", {"--json", "--quiesce", "no"}));
    while (nbdelta.running() && points_.phase() != "prepare")
      std::this_thread::sleep_for(1ms);
    nbdelta.signal(signal);
    const auto outcome = nbdelta.wait(kDefaultTimeout);
    ASSERT_TRUE(outcome);
    ASSERT_EQ(outcome->status, 128 + signal) << outcome->err;
    EXPECT_EQ(json::parse(outcome->out).at("result").as_string(), "interrupted");
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
  }
}

TEST_F(Output, OfABackupThatOutlivesItsTerminal) {
  Background nbdelta(joined({"nohup"}, points_.command("backup", {"--json", "--quiesce", "no"})));
  while (nbdelta.running() && points_.phase() != "prepare")
    std::this_thread::sleep_for(1ms);
  nbdelta.signal(SIGHUP);
  const auto outcome = nbdelta.wait(kDefaultTimeout);
  ASSERT_TRUE(outcome);
  ASSERT_EQ(outcome->status, 0) << outcome->err;
}

TEST_F(Output, OfADryRun) {
  points_.backup({"--disk", "vda"});
  const json::value plan =
      json::parse(run_ok(points_.command("backup", {"--dry-run", "--json", "--quiesce", "no"})));
  EXPECT_EQ(plan.at("result").as_string(), "plan");
  EXPECT_EQ(plan.at("type").as_string(), "incremental");
  const json::value& vda = plan.at("disks").at(0);
  EXPECT_EQ(vda.at("name").as_string(), "vda");
  EXPECT_EQ(vda.at("type").as_string(), "incremental");
  EXPECT_EQ(vda.at("size").to_number<std::uint64_t>(), machine_.disks()[0].size);
  EXPECT_EQ(vda.at("path").as_string(), machine_.image(machine_.disks()[0]));
  EXPECT_EQ(vda.at("map").as_string(), "bitmap in the image");
  EXPECT_FALSE(vda.as_object().contains("reason"));
  const json::value& vdb = plan.at("disks").at(1);
  EXPECT_EQ(vdb.at("type").as_string(), "full");
  EXPECT_EQ(vdb.at("reason").as_string(), "it is not in the last restore point");
  EXPECT_TRUE(plan.at("notes").as_array().empty());
}

TEST_F(Output, OfRecover) {
  const auto recovered = [&] {
    return json::parse(run_ok(points_.command("recover", {"--json", "--quiet"})));
  };
  points_.backup();
  json::value nothing = recovered();
  EXPECT_EQ(nothing.at("result").as_string(), "done");
  EXPECT_TRUE(nothing.at("done").as_array().empty());
  run_ok(points_.command("begin", {"--quiesce", "no"}));
  const json::value result = recovered();
  EXPECT_EQ(result.at("result").as_string(), "done");
  EXPECT_FALSE(result.at("overlay-kept").as_bool());
  EXPECT_FALSE(result.at("done").as_array().empty());
  EXPECT_TRUE(result.at("problems").as_array().empty());
}

/// On a terminal: a line for each disk, while it is copied.
TEST_F(Output, OfProgressNamesTheDisk) {
  for (const MachineDisk& disk : machine_.disks())
    machine_.write(disk, "write -P 1 0 1M");
  const NbdkitInstead slow(R"(exec "$nbdkit" --filter=delay "$@" delay-read=900ms)");
  std::string words;
  for (const std::string& word : points_.command("backup", {"--quiesce", "no"}))
    words += " '" + word + "'";
  const std::string said = run_ok({"script", "-qec", words, "/dev/null"}, slow.options());
  EXPECT_THAT(said, HasSubstr("\rvda: "));
  EXPECT_THAT(said, HasSubstr("\rvdb: "));
  const Command quiet = points_.command("backup", {"--quiesce", "no", "--quiet"});
  EXPECT_EQ(run(quiet).err, "");
}

}  // namespace
}  // namespace nbdelta::testing
