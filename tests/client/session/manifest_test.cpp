#include <filesystem>
#include <fstream>

#include "tests/client/session/fake_agent.hpp"
#include "tests/client/session/session_test.hpp"

/// What is written into repositories is what docs/manifest.schema.json says.
namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

const std::string kSource = NBDELTA_SOURCE;

Command check(const Command& manifests) {
  Command words{kSource + "/tests/client/session/check-manifests",
                kSource + "/docs/manifest.schema.json"};
  words.insert(words.end(), manifests.begin(), manifests.end());
  return words;
}

class ManifestTest : public ::testing::Test {
 protected:
  Command backup(const Command& more) {
    Command words = points_.command("backup", {"--agent", machine_.folder() + "/agent"});
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  /// All that the repositories have.
  Command manifests() const {
    Command found;
    for (const auto& entry : fs::recursive_directory_iterator(machine_.folder()))
      if (entry.path().filename() == "manifest.json")
        found.push_back(entry.path());
    return found;
  }

  Machine machine_{{{.name = "vda"}, {.name = "vdb", .format = "raw", .by_drive = true}}};
  Points points_{machine_};
  Points external_{machine_, "external"};
};

TEST_F(ManifestTest, EveryKindIsAsTheSchemaSays) {
  {
    const FakeAgent agent(machine_.folder() + "/agent", {});
    run_ok(backup({"--presync"}));             // full, frozen
    run_ok(backup({"--mountpoint", "/mnt"}));  // incremental, in part frozen
    run_ok(backup({"--disk", "vda", "--quiesce", "no"}));
    run_ok(backup({"--tracking", "overlay"}));  // one of each type, with a reason
    run_ok(backup({"--full"}));
  }
  fs::remove(machine_.folder() + "/agent");
  run_ok(backup({}));  // the freeze fails
  {
    const FakeAgent agent(machine_.folder() + "/agent", {.freeze_fails_after = true});
    run_ok(backup({}));
  }
  machine_.command("stop");
  run_ok(backup({}));
  machine_.command("cont");
  for (int i = 0; i < 2; ++i) {
    run_ok(external_.command("begin", {"--quiesce", "no"}));
    run_ok(external_.command("end", {"--success"}));
  }
  const Command all = manifests();
  EXPECT_EQ(all.size(), 10U);
  EXPECT_EQ(run_ok(check(all)), "10 manifests are valid\n");
}

/// A check that takes everything would be none.
TEST_F(ManifestTest, WhatIsNotAsTheSchemaSaysIsFound) {
  points_.backup();
  const std::string path = points_.vm_folder() + "/0001-full/manifest.json";
  EXPECT_EQ(run(check({path})).status, 0);
  json::object manifest = json::parse(run_ok({"cat", path})).as_object();
  const auto expect_invalid = [&](const json::object& broken, const std::string& message) {
    const std::string copy = machine_.folder() + "/broken.json";
    std::ofstream(copy) << json::value(broken);
    const Outcome outcome = run(check({path, copy}));
    EXPECT_EQ(outcome.status, 1) << message;
    EXPECT_THAT(outcome.err, HasSubstr(copy)) << message;
    EXPECT_THAT(outcome.err, HasSubstr(message));
  };
  const auto change = [&](const char* name, const json::value& value) {
    json::object broken = manifest;
    broken[name] = value;
    return broken;
  };
  for (const char* name : {"chain", "window", "disks", "type", "created"}) {
    json::object broken = manifest;
    broken.erase(name);
    expect_invalid(broken, "required");
  }
  expect_invalid(change("chain", "XYZ"), "chain");
  expect_invalid(change("number", 0), "number");
  expect_invalid(change("type", "incremental"), "disks");  // none of them is
  expect_invalid(change("external", true), "disks");       // they have files
  expect_invalid(change("unknown", 1), "unknown");
  expect_invalid(change("presync", nullptr), "presync");
}

TEST(CheckManifests, NothingToCheckIsNoSuccess) {
  EXPECT_EQ(run(check({})).status, 2);
}

}  // namespace
}  // namespace nbdelta::testing
