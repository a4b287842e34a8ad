#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <boost/json/serialize.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "tests/client/session/session_test.hpp"
#include "tests/support/environment_variable.hpp"

/// `nbdelta begin`, a copy by other software, `nbdelta end`.
namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
namespace json = boost::json;

class External : public ::testing::Test {
 protected:
  json::value begin(const Command& more = {}) {
    Command words = points_.command("begin", {"--json", "--quiesce", "no"});
    words.insert(words.end(), more.begin(), more.end());
    return json::parse(run_ok(words));
  }
  void end(const std::string& how) { run_ok(points_.command("end", {how})); }

  static json::value read_json(const std::string& path) {
    std::ifstream file(path);
    return json::parse(std::string(std::istreambuf_iterator<char>(file), {}));
  }
  static std::string uri_of(const json::value& begun) {
    return std::string(begun.at("disks").at(0).at("uri").as_string());
  }
  std::string copy(const std::string& name) { return machine_.folder() + "/" + name; }
  const MachineDisk& disk() { return machine_.disks()[0]; }

  Random random_ = Random::from_environment();
  Machine machine_{{{.name = "vda"}}};
  Points points_{machine_};
};

TEST_F(External, QemuImgConvertCopiesAFullAndIncrementals) {
  machine_.write_at_random(random_, 20);
  std::string previous;
  for (int i = 0; i < 3; ++i) {
    const json::value begun = begin();
    // An independent copy of the frozen base, taken while the session is open.
    run_ok({"cp", machine_.image(disk()), copy(fmt::format("base-{}.qcow2", i))});
    machine_.write_at_random(random_, 10);
    const std::string file = copy(fmt::format("{}.qcow2", i));
    Command words{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"};
    if (!previous.empty())
      words.insert(words.end(), {"-B", previous, "-F", "qcow2"});
    words.insert(words.end(), {uri_of(begun), file});
    run_ok(words);
    EXPECT_EQ(begun.at("disks").at(0).at("type").as_string(), i == 0 ? "full" : "incremental");
    end("--success");
    EXPECT_EQ(difference(file, "qcow2", copy(fmt::format("base-{}.qcow2", i)), "qcow2"), "");
    previous = file;
  }
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

TEST_F(External, NbdcopyCopiesTheWholeDisk) {
  machine_.write_at_random(random_, 20);
  const json::value begun = begin();
  run_ok({"nbdcopy", uri_of(begun), copy("copy.raw")});
  EXPECT_EQ(difference(copy("copy.raw"), "raw", machine_.model(disk()), "raw"), "");
  end("--success");
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

TEST_F(External, AfterAFailureTheChangesComeAgain) {
  machine_.write_at_random(random_, 20);
  const std::string full = copy("full.qcow2");
  const json::value first = begin();
  run_ok({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri_of(first), full});
  end("--success");
  machine_.write_at_random(random_, 20);
  begin();
  machine_.write_at_random(random_, 20);
  end("--failure");
  const json::value again = begin();
  EXPECT_EQ(again.at("disks").at(0).at("type").as_string(), "incremental");
  run_ok({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-B", full, "-F", "qcow2",
          uri_of(again), copy("incremental.qcow2")});
  EXPECT_EQ(difference(copy("incremental.qcow2"), "qcow2", machine_.model(disk()), "raw"), "");
  end("--success");
}

/// Nothing large is READY in no time; each session goes on with the overlays that the last has
/// left.
TEST_F(External, CommitThatDoesNotCatchUpLeavesAnOverlayToGoOnWith) {
  std::string previous;
  for (int i = 0; i < 5; ++i) {
    machine_.write_at_random(random_, 10);
    const json::value begun = begin();
    EXPECT_EQ(begun.at("disks").at(0).at("type").as_string(), i == 0 ? "full" : "incremental");
    const std::string expected = copy(fmt::format("model-{}", i));
    run_ok({"cp", "--sparse=always", machine_.model(disk()), expected});
    machine_.write(disk(), fmt::format("write -P {} 0 24M", i + 1));
    const std::string file = copy(fmt::format("{}.qcow2", i));
    Command words{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"};
    if (!previous.empty())
      words.insert(words.end(), {"-B", previous, "-F", "qcow2"});
    words.insert(words.end(), {uri_of(begun), file});
    run_ok(words);
    previous = file;
    const bool last = i == 4;
    Command end = points_.command("end", {i == 2 ? "--failure" : "--success", "--json"});
    if (!last)
      end.insert(end.end(), {"--commit-deadline", "0"});
    const json::value ended = json::parse(run_ok(end));
    EXPECT_EQ(ended.at("overlay-kept").as_bool(), !last);
    EXPECT_EQ(machine_.leftovers().empty(), last);
    EXPECT_EQ(difference(file, "qcow2", expected, "raw"), "");
    if (i == 2)  // not kept: the next one has these changes too
      previous = copy("1.qcow2");
  }
}

/// An 'end --success' was killed as soon as its restore point counted.
TEST_F(External, FailureAfterASuccessThatCameNoFurther) {
  machine_.write_at_random(random_, 20);
  const std::string full = copy("full.qcow2");
  const json::value first = begin();
  run_ok({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri_of(first), full});
  end("--success");
  machine_.write_at_random(random_, 20);
  begin();
  const json::value journal = read_json(points_.vm_folder() + "/nbdelta-session.json");
  const std::string point =
      points_.vm_folder() + "/" + std::string(journal.at("point").as_string());
  fs::create_directories(point);
  std::ofstream(point + "/manifest.json") << json::serialize(journal.at("manifest"));
  end("--failure");
  EXPECT_FALSE(fs::exists(point));
  const json::value again = begin();
  EXPECT_EQ(again.at("disks").at(0).at("type").as_string(), "incremental");
  run_ok({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-B", full, "-F", "qcow2",
          uri_of(again), copy("incremental.qcow2")});
  EXPECT_EQ(difference(copy("incremental.qcow2"), "qcow2", machine_.model(disk()), "raw"), "");
  end("--success");
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

TEST_F(External, NobodySaysTwiceAndDifferentlyWhatBecameOfACopy) {
  const auto set_phase = [this](const char* phase) {
    const std::string path = points_.vm_folder() + "/nbdelta-session.json";
    json::value journal = read_json(path);
    journal.as_object()["phase"] = phase;
    std::ofstream(path) << json::serialize(journal);
    return std::string(journal.at("point").as_string());
  };
  begin();
  for (const char* phase : {"window", "commit"}) {
    set_phase(phase);
    const Outcome success = run(points_.command("end", {"--success"}));
    EXPECT_EQ(success.status, 3) << phase;
    EXPECT_THAT(success.err, HasSubstr("nothing counts as copied")) << phase;
  }
  const std::string point = set_phase("commit");
  fs::create_directories(points_.vm_folder() + "/" + point);
  std::ofstream(points_.vm_folder() + "/" + point + "/manifest.json")
      << json::serialize(read_json(points_.vm_folder() + "/nbdelta-session.json").at("manifest"));
  const Outcome failure = run(points_.command("end", {"--failure"}));
  EXPECT_EQ(failure.status, 3);
  EXPECT_THAT(failure.err, HasSubstr("has ended as a success"));
  end("--success");
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

TEST_F(External, AJournalThatCannotBeWrittenKeepsNobodyFromTheBase) {
  begin();
  machine_.write_at_random(random_, 10);
  const std::string partial = points_.vm_folder() + "/nbdelta-session.json.partial";
  ASSERT_EQ(::mknod(partial.c_str(), S_IFCHR | 0600, makedev(1, 7)), 0);  // as /dev/full
  end("--failure");
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  EXPECT_FALSE(fs::exists(points_.vm_folder() + "/nbdelta-session.json"));
}

TEST_F(External, AServerThatWasKilledIsShownAndLeavesNothing) {
  const TempFolder sockets;
  for (const std::string how : {"--success", "--failure", "recover"}) {
    begin({"--socket-dir", sockets.path()});
    EXPECT_TRUE(json::parse(run_ok(points_.command("status", {"--json"})))
                    .at_pointer("/exports/0/serving")
                    .as_bool());
    kill_servers_of(machine_.folder());
    EXPECT_FALSE(fs::is_empty(sockets.path()));
    EXPECT_THAT(run_ok(points_.command("status")), HasSubstr("export of vda: no nbdkit serves it"));
    run_ok(how == "recover" ? points_.command(how) : points_.command("end", {how}));
    EXPECT_TRUE(fs::is_empty(sockets.path())) << how;
    EXPECT_THAT(machine_.leftovers(), IsEmpty());
  }
}

TEST_F(External, OneSessionAtATime) {
  begin();
  const Outcome second = run(points_.command("begin"));
  EXPECT_EQ(second.status, 3);
  EXPECT_THAT(second.err, HasSubstr("a session of external software is open since"));
  const Outcome backup = run(points_.command("backup"));
  EXPECT_EQ(backup.status, 3);
  end("--failure");
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
  const Outcome none = run(points_.command("end", {"--success"}));
  EXPECT_EQ(none.status, 3);
  EXPECT_THAT(none.err, HasSubstr("no session of external software is open"));
}

TEST_F(External, StatusShowsTheOpenSession) {
  begin();
  machine_.write(disk(), "write -P 5 0 1M");
  const json::value status = json::parse(run_ok(points_.command("status", {"--json"})));
  EXPECT_EQ(status.at("session").at("phase").as_string(), "export");
  const json::value& overlay = status.at("disks").at(0).at("overlays").at(0);
  EXPECT_GE(overlay.at("allocated").to_number<std::uint64_t>(), 1U << 20);
  EXPECT_THAT(run_ok(points_.command("status")), HasSubstr("overlay"));
  const Command elsewhere{
      "status", "--qmp", machine_.qmp(), "--vm", "vm", "--to", machine_.folder() + "/other"};
  EXPECT_THAT(run_ok(nbdelta_command(elsewhere)), Not(HasSubstr("no session is open")));
  EXPECT_EQ(run(points_.command("backup", {"--dry-run"})).status, 3);
  end("--success");
  EXPECT_THAT(run_ok(points_.command("status")), HasSubstr("no session is open"));
}

TEST_F(External, MistypedRepositoriesAreNotMade) {
  const std::string typo = machine_.folder() + "/typo";
  for (const Command& command : {Command{"end", "--success"}, Command{"recover"}}) {
    Command words = nbdelta_command(command);
    for (const std::string& word : Command{"--qmp", machine_.qmp(), "--vm", "vm", "--to", typo})
      words.push_back(word);
    EXPECT_EQ(run(words).status, 3);
  }
  EXPECT_FALSE(std::filesystem::exists(typo));
}

TEST_F(External, AFolderForSocketsThatIsNotThereIsAUsageError) {
  const Outcome outcome =
      run(points_.command("begin", {"--quiesce", "no", "--socket-dir", "/nowhere"}));
  EXPECT_EQ(outcome.status, 2);
  EXPECT_THAT(outcome.err, HasSubstr("--socket-dir /nowhere"));
}

TEST_F(External, OverTcp) {
  machine_.write_at_random(random_, 20);
  for (const std::string host : {"127.0.0.1", "[::1]"}) {
    const std::string address = host + ":" + std::to_string(20000 + random_.below(20000));
    const json::value begun = begin({"--listen", address});
    EXPECT_EQ(uri_of(begun), "nbd://" + address + "/image");
    run_ok({"nbdcopy", uri_of(begun), copy("copy.raw")});
    EXPECT_EQ(difference(copy("copy.raw"), "raw", machine_.model(disk()), "raw"), "");
    end("--failure");
  }
}

TEST(ExternalOfTwoDisks, HasAPortForEach) {
  Machine machine({{.name = "vda"}, {.name = "vdb"}});
  const Points points(machine);
  const Outcome outcome =
      run(points.command("begin", {"--quiesce", "no", "--listen", "127.0.0.1:65535"}));
  EXPECT_EQ(outcome.status, 3);
  EXPECT_THAT(outcome.err, HasSubstr("--listen 127.0.0.1:65535: 2 disks need as many ports"));
  EXPECT_THAT(outcome.err, HasSubstr("nothing was touched"));
  EXPECT_THAT(machine.leftovers(), IsEmpty());
  run_ok(points.command("begin", {"--quiesce", "no", "--listen", "127.0.0.1:65534"}));
  run_ok(points.command("end", {"--failure"}));
}

/// nbdkit 1.32 takes no connection any more where who started it ends before its first process has.
TEST_F(External, EndsWhenTheServerStandsAlone) {
  const TempFolder programs;
  const std::string nbdkit = programs / "nbdkit";
  const std::string stands_alone = programs / "stands-alone";
  std::ofstream(nbdkit) << "#!/bin/sh\n"
                        << find_program("nbdkit") << " \"$@\"\nsleep 0.5\ntouch " << stands_alone
                        << "\n";
  std::filesystem::permissions(nbdkit, std::filesystem::perms::owner_all);
  const std::string path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe): one thread
  const EnvironmentVariable variable("PATH", programs.path() + ":" + path);
  begin();
  EXPECT_TRUE(std::filesystem::exists(stands_alone));
  end("--failure");
}

/// Who cannot be told the URIs cannot end the session on his own.
TEST_F(External, SaysThatTheSessionIsOpenWhereItsOutputIsLost) {
  Command words{"sh", "-c", "exec \"$@\" >/dev/full", "sh"};
  const Command begin = points_.command("begin", {"--quiesce", "no"});
  words.insert(words.end(), begin.begin(), begin.end());
  const Outcome outcome = run(words);
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("nbdelta end --failure"));
  end("--failure");
  EXPECT_THAT(machine_.leftovers(), IsEmpty());
}

TEST_F(External, OverTcpWithTls) {
  machine_.write_at_random(random_, 20);
  const TempFolder certificates;
  run_ok({"certtool", "--generate-privkey", "--outfile", certificates / "ca-key.pem"});
  const auto make = [&](const std::string& name, const std::string& what) {
    std::ofstream(certificates / (name + ".info")) << what;
    if (name != "ca")
      run_ok({"certtool", "--generate-privkey", "--outfile", certificates / (name + "-key.pem")});
  };
  make("ca", "cn = ours\nca\ncert_signing_key\n");
  run_ok({"certtool", "--generate-self-signed", "--load-privkey", certificates / "ca-key.pem",
          "--template", certificates / "ca.info", "--outfile", certificates / "ca-cert.pem"});
  for (const std::string side : {"server", "client"}) {
    make(side, "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_" + side +
                   "\nencryption_key\nsigning_key\n");
    run_ok({"certtool", "--generate-certificate", "--load-ca-certificate",
            certificates / "ca-cert.pem", "--load-ca-privkey", certificates / "ca-key.pem",
            "--load-privkey", certificates / (side + "-key.pem"), "--template",
            certificates / (side + ".info"), "--outfile", certificates / (side + "-cert.pem")});
  }
  const std::string port = std::to_string(20000 + random_.below(20000));
  const json::value begun =
      begin({"--listen", "127.0.0.1:" + port, "--tls-certificates", certificates.path()});
  EXPECT_EQ(uri_of(begun), "nbds://127.0.0.1:" + port + "/image");
  run_ok({"nbdcopy", uri_of(begun) + "?tls-certificates=" + certificates.path(), copy("copy.raw")});
  EXPECT_EQ(difference(copy("copy.raw"), "raw", machine_.model(disk()), "raw"), "");
  EXPECT_NE(run({"nbdinfo", "nbd://127.0.0.1:" + port + "/image"}).status, 0);
  end("--success");
}

}  // namespace
}  // namespace nbdelta::testing
