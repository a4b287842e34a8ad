#include "sim/scenario.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "sim/json_place.hpp"
#include "sim/quantity.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

std::string refusal_of(const std::string& text, const std::string& file = "a.json") {
  try {
    parse_scenario(text, file);
  } catch (const Error& error) {
    return error.what();
  }
  return "it was taken";
}

TEST(ScenarioText, Defaults) {
  const Scenario scenario =
      parse_scenario(R"({"disks": [{"name": "vda", "size": "1 GiB"}]})", "some/idle.json");
  EXPECT_EQ(scenario.name, "idle");
  ASSERT_EQ(scenario.disks.size(), 1U);
  EXPECT_EQ(scenario.disks[0].format, "qcow2");
  EXPECT_FALSE(scenario.disks[0].backing);
  EXPECT_EQ(scenario.qemu.version, "7.2");
  EXPECT_TRUE(scenario.guest.loads.empty());
  EXPECT_EQ(scenario.duration, 60s);
}

TEST(ScenarioText, Everything) {
  const Scenario scenario = parse_scenario(R"({
    "qemu": {"version": "10.0", "command": "250 us", "snapshot": "1.5 ms", "jitter": 0.5},
    "disks": [
      {"name": "vda", "size": "1 GiB", "format": "qcow2", "backing": true},
      {"name": "vdb", "size": "128 KiB", "format": "raw", "by-drive": true}
    ],
    "page-cache": {"dirty-limit": "8 MiB", "background": "1 MiB", "expire": "3 s",
                   "interval": "1 s"},
    "storage": {"throughput": "20 MiB/s", "latency": "5 ms", "flush-latency": "10 ms",
                "parallel": 4, "jitter": 0.5},
    "agent": {"latency": "2 ms", "freeze": "20 ms", "jitter": 1, "thaw": "7 ms"},
    "loads": [
      {"disk": "vdb", "pattern": "zipf", "rate": "1 MiB/s", "request": "4 KiB", "area": "64 KiB",
       "skew": 1.1, "zeros": 0.25, "discards": 0.5, "sync-every": 10, "files": 2, "programs": 3,
       "direct": true},
      {"pattern": "sequential", "rate": "unlimited"}
    ],
    "duration": "2 min",
    "seed": 18446744073709551614
  })",
                                           "x.json");
  EXPECT_EQ(scenario.qemu.version, "10.0");
  EXPECT_EQ(scenario.qemu.command, 250us);
  EXPECT_EQ(scenario.qemu.snapshot, 1500us);
  EXPECT_TRUE(scenario.disks[0].backing);
  EXPECT_EQ(scenario.disks[1].size, 131072U);
  EXPECT_TRUE(scenario.disks[1].by_drive);
  EXPECT_EQ(scenario.guest.cache.dirty_limit, 8U << 20);
  EXPECT_EQ(scenario.guest.cache.background, 1U << 20);
  EXPECT_EQ(scenario.guest.cache.expire, 3s);
  EXPECT_EQ(scenario.guest.cache.interval, 1s);
  EXPECT_EQ(scenario.guest.storage.throughput, 20U << 20);
  EXPECT_EQ(scenario.guest.storage.latency, 5ms);
  EXPECT_EQ(scenario.guest.storage.flush, 10ms);
  EXPECT_EQ(scenario.guest.storage.parallel, 4U);
  EXPECT_EQ(scenario.guest.storage.jitter, 0.5);
  EXPECT_EQ(scenario.agent.latency, 2ms);
  EXPECT_EQ(scenario.guest.freeze, 20ms);
  EXPECT_EQ(scenario.guest.freeze_jitter, 1);
  EXPECT_EQ(scenario.agent.jitter, 1);
  EXPECT_EQ(scenario.qemu.jitter, 0.5);
  EXPECT_EQ(scenario.agent.thaw, 7ms);
  ASSERT_EQ(scenario.guest.loads.size(), 3U);
  const LoadSetup& load = scenario.guest.loads[0].load;
  EXPECT_EQ(scenario.guest.loads[0].disk, 1U);
  EXPECT_EQ(load.pattern, Pattern::zipf);
  EXPECT_EQ(load.rate, 1U << 20);
  EXPECT_EQ(load.request, 4096U);
  EXPECT_EQ(load.area, 65536U);
  EXPECT_EQ(load.skew, 1.1);
  EXPECT_EQ(load.zero_share, 0.25);
  EXPECT_EQ(load.discard_share, 0.5);
  EXPECT_EQ(load.sync_every, 10U);
  EXPECT_EQ(load.files, 2U);
  EXPECT_EQ(load.programs, 3U);
  EXPECT_TRUE(load.direct);
  for (std::size_t i = 1; i < 3; ++i) {  // of each disk
    EXPECT_EQ(scenario.guest.loads[i].disk, i - 1);
    EXPECT_EQ(scenario.guest.loads[i].load.pattern, Pattern::sequential);
    EXPECT_FALSE(scenario.guest.loads[i].load.rate);
  }
  EXPECT_EQ(scenario.duration, 120s);
  EXPECT_EQ(scenario.seed, UINT64_MAX - 1);
}

/// `members` beside a disk.
std::string with(const std::string& members) {
  return R"({"disks": [{"name": "vda", "size": "1 GiB"}],)"
         "\n"
         " " +
         members + "}";
}

TEST(ScenarioText, Refusals) {
  const struct {
    const char* name;
    std::string text;
    const char* message;  // after the file
  } kCases[] = {
      {"no JSON", "{\n  \"disks\": [}", "2:13: /: is not JSON: "},
      {"nothing", "", "1:1: /: is not JSON: it ends too early"},
      {"half", "{\"disks\": ", "1:11: /: is not JSON: it ends too early"},
      {"more", "{} {}", "1:4: /: is not JSON: "},
      {"a list", "[]", "1:1: /: expected an object"},
      {"no disks", "{}", "1:1: /: \"disks\" is missing"},
      {"an empty list", "{\"disks\": []}", "1:2: /disks: expected 1 to 64 disks"},
      {"an unknown key", with("\"disk\": 1"),
       "2:2: /disk: unknown key; there may be: qemu, disks, page-cache, storage, agent, loads, "
       "duration, seed"},
      {"an unknown key below", with("\"storage\": {\"throughput\": \"1 MiB/s\", \"iops\": 3}"),
       "2:39: /storage/iops: unknown key; there may be: throughput, latency, flush-latency, "
       "parallel, jitter"},
      {"a key of another pattern", with("\"loads\": [{\"pattern\": \"uniform\", \"skew\": 1}]"),
       "2:35: /loads/0/skew: unknown key; there may be: disk, pattern, direct, rate, request, "
       "area, zeros, discards, programs, sync-every, files"},
      {"a key twice", with("\"seed\": 1, \"duration\": \"1 s\",\n \"seed\": 1"),
       "3:2: /seed: there are two members of this name: expected one"},
      {"a key twice below", with("\"storage\": {\"parallel\": 1, \"par\\u0061llel\": 2}"),
       "2:29: /storage/parallel: there are two members of this name"},
      {"a number for a time", with("\"duration\": 10"),
       "2:2: /duration: expected a quantity with its unit, as in \"24 h\""},
      {"a wrong unit", with("\"duration\": \"10 MiB\""),
       "2:2: /duration: '10 MiB' is not a time: expected a number and a unit, as in \"5 ms\" "
       "(units: us, ms, s, min, h)"},
      {"a decimal unit", with("\"storage\": {\"throughput\": \"10 MB/s\"}"),
       "2:14: /storage/throughput: '10 MB/s' is not a rate: expected a number and a unit, as in "
       "\"20 MiB/s\" (units: B/s, KiB/s, MiB/s, GiB/s, TiB/s)"},
      {"a size for a rate", with("\"storage\": {\"throughput\": \"10 MiB\"}"), "is not a rate"},
      {"a rate that would be rounded into the range",
       with("\"loads\": [{\"pattern\": \"uniform\", \"rate\": \"0.5 B/s\"}]"),
       "2:35: /loads/0/rate: '0.5 B/s' is out of range: 1 B/s to 1 TiB/s"},
      {"a size that would be", with("\"page-cache\": {\"dirty-limit\": \"65535.6 B\"}"),
       "'65535.6 B' is out of range: 64 KiB to 1 TiB"},
      {"an area smaller than a request",
       with("\"loads\": [{\"pattern\": \"uniform\", \"area\": \"32 KiB\", \"request\": \"64 "
            "KiB\"}]"),
       "2:35: /loads/0/area: '32 KiB' is smaller than one request: expected 64 KiB to 1 GiB"},
      {"an area smaller than the default's request",
       with("\"loads\": [{\"pattern\": \"uniform\", \"area\": \"4 KiB\"}]"),
       "2:35: /loads/0/area: '4 KiB' is smaller than one request: expected 16 KiB to 1 GiB"},
      {"a 0 in a quantity", with("\"duration\": \"1 s\\u0000\""),
       "2:2: /duration: '1 s\\u0000' is not a time: expected a number and a unit, as in \"5 ms\" "
       "(units: us, ms, s, min, h)"},
      {"a 0 in a key", with("\"a\\u0000b\": 1"),
       "2:2: /a\\u0000b: unknown key; there may be: qemu"},
      {"a 0 in a name", "{\"disks\": [{\"name\": \"v\\u0000\", \"size\": \"1 GiB\"}]}",
       "'v\\u0000' is no name of a disk: a letter, then up to 19 letters"},
      {"a 0 in a path", with("\"loads\": [{\"pattern\": \"trace\", \"trace\": \"a\\u0000b\"}]"),
       "/loads/0/trace: 'a\\u0000b' is no path"},
      {"out of range", with("\"duration\": \"25 h\""), "'25 h' is out of range: 1 s to 24 h"},
      {"nothing a second", with("\"storage\": {\"throughput\": \"0 B/s\"}"),
       "'0 B/s' is out of range: 1 KiB/s to 1 TiB/s"},
      {"a fraction", with("\"storage\": {\"parallel\": 1.5}"),
       "/storage/parallel: expected a whole number from 1 to 1024"},
      {"below a range", with("\"storage\": {\"parallel\": 0}"), "a whole number from 1 to 1024"},
      {"negative", with("\"seed\": -1"), "/seed: expected a whole number from 0 to 1844"},
      {"a share above 1", with("\"loads\": [{\"pattern\": \"uniform\", \"zeros\": 1.5}]"),
       "/loads/0/zeros: expected a number from 0 to 1"},
      {"shares above 1 together",
       with("\"loads\": [{\"pattern\": \"uniform\", \"zeros\": 0.75, \"discards\": 0.5}]"),
       "/loads/0/discards: \"zeros\" and \"discards\" are shares of the same requests: expected "
       "at most 0.25"},
      {"shares whose rest is no binary fraction",
       with("\"loads\": [{\"pattern\": \"uniform\", \"zeros\": 0.9, \"discards\": 0.5}]"),
       "expected at most 0.1\n"},
      {"another version", with("\"qemu\": {\"version\": \"8.0\"}"),
       "/qemu/version: expected one of: \"7.2\", \"10.0\""},
      {"a version as a number", with("\"qemu\": {\"version\": 10.0}"), "expected one of: \"7.2\""},
      {"no such pattern", with("\"loads\": [{\"pattern\": \"random\"}]"),
       "/loads/0/pattern: expected one of: \"sequential\", \"uniform\", \"zipf\", \"database\", "
       "\"idle\", \"trace\""},
      {"no pattern", with("\"loads\": [{\"disk\": \"vda\"}]"), "/loads/0: \"pattern\" is missing"},
      {"no such disk", with("\"loads\": [{\"disk\": \"vdb\", \"pattern\": \"idle\"}]"),
       "/loads/0/disk: there is no disk 'vdb': expected one of \"vda\""},
      {"an area beyond the disk",
       with("\"loads\": [{\"pattern\": \"uniform\", \"area\": \"2 GiB\"}]"),
       "/loads/0/area: is larger than the disk vda: expected at most 1 GiB\n"},
      {"a request beyond the disk",
       "{\"disks\": [{\"name\": \"a\", \"size\": \"1 MiB\"}], \"loads\": [{\"pattern\": "
       "\"uniform\", \"request\": \"2 MiB\"}]}",
       "/loads/0/request: is larger than the disk a: expected at most 1 MiB\n"},
      {"half a sector", with("\"loads\": [{\"pattern\": \"uniform\", \"request\": \"700 B\"}]"),
       "/loads/0/request: expected a multiple of 512 B"},
      {"a text for a flag", with("\"loads\": [{\"pattern\": \"idle\", \"direct\": \"yes\"}]"),
       "/loads/0/direct: expected true or false"},
      {"a background above the limit",
       with("\"page-cache\": {\"dirty-limit\": \"1 MiB\", \"background\": \"1 MiB\"}"),
       "/page-cache/background: expected less than \"dirty-limit\", 1 MiB\n"},
      {"a background above an odd limit",
       with("\"page-cache\": {\"dirty-limit\": \"65537 B\", \"background\": \"1 MiB\"}"),
       "less than \"dirty-limit\", 65537 B\n"},
      {"two of a name",
       R"({"disks": [{"name": "a", "size": "1 GiB"}, {"name": "a", "size": "1 GiB"}]})",
       "1:45: /disks/1/name: there are two disks 'a'"},
      {"a name that is a path", R"({"disks": [{"name": "../a", "size": "1 GiB"}]})",
       "/disks/0/name: '../a' is no name of a disk"},
      {"no size", R"({"disks": [{"name": "a"}]})", "1:12: /disks/0: \"size\" is missing"},
      {"an odd size", R"({"disks": [{"name": "a", "size": "100 KiB"}]})",
       "/disks/0/size: expected a multiple of 64 KiB"},
      {"too much", R"({"disks": [{"name": "a", "size": "1 TiB"}, {"name": "b", "size": "1 TiB"}]})",
       "/disks: expected at most 1 TiB in all disks together"},
      {"another format", R"({"disks": [{"name": "a", "size": "1 GiB", "format": "vmdk"}]})",
       "/disks/0/format: expected one of: \"qcow2\", \"raw\""},
      {"raw over something",
       R"({"disks": [{"name": "a", "size": "1 GiB", "format": "raw", "backing": true}]})",
       "/disks/0/backing: a raw image has no backing file"},
      {"no trace", with("\"loads\": [{\"pattern\": \"trace\"}]"), "/loads/0: \"trace\" is missing"},
      {"a trace that is not there",
       with("\"loads\": [{\"pattern\": \"trace\", \"trace\": \"gone.log\"}]"),
       "/loads/0/trace: gone.log: cannot open: No such file"},
  };
  for (const auto& each : kCases) {
    SCOPED_TRACE(each.name);
    const std::string message = refusal_of(each.text);
    EXPECT_TRUE(message.starts_with("a.json:")) << message;
    EXPECT_NE((message + "\n").find(each.message), std::string::npos) << message;
  }
}

/// A trace's path is relative to the scenario's folder; a mistake in it is told with both places.
TEST(ScenarioText, ATraceOfOneOfItsFiles) {
  const testing::TempFolder folder;
  std::ofstream(folder / "t.log") << "fio version 2 iolog\n/a add\n/b add\n/a open\n/b open\n"
                                     "/a write 0 512\n/b write 4096 512\n";
  std::ofstream(folder / "bad.log") << "fio version 2 iolog\n/a add\n/a write 0 512\n";
  const auto scenario = [&](const std::string& load) {
    std::ofstream(folder / "s.json") << with("\"loads\": [" + load + "]");
    return read_scenario(folder / "s.json");
  };
  const Scenario good = scenario(R"({"pattern": "trace", "trace": "t.log", "file": "/b"})");
  ASSERT_EQ(good.guest.loads.at(0).load.trace.size(), 1U);
  EXPECT_EQ(good.guest.loads[0].load.trace[0].offset, 4096U);
  const auto refusal = [&](const std::string& load) {
    try {
      scenario(load);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("it was taken");
  };
  EXPECT_NE(refusal(R"({"pattern": "trace", "trace": "t.log"})")
                .find("s.json:2:12: /loads/0: \"file\" must be one of the trace's: /a, /b"),
            std::string::npos);
  EXPECT_NE(
      refusal(R"({"pattern": "trace", "trace": "bad.log"})").find("bad.log:3: /a is not open"),
      std::string::npos);
  std::ofstream(folder / "none.log") << "fio version 2 iolog\n";
  EXPECT_NE(refusal(R"({"pattern": "trace", "trace": "none.log"})")
                .find("/loads/0/trace: " + (folder / "none.log") +
                      ": adds no file: there is nothing to do"),
            std::string::npos);
}

/// No action is left out in silence. What a sync is of does not matter, nor do other files.
TEST(ScenarioText, ATraceStaysWithinItsDisks) {
  const testing::TempFolder folder;
  const std::string trace = folder / "t.log";
  const auto refusal = [&](const std::string& action, const std::string& more = "") {
    std::ofstream(trace) << "fio version 2 iolog\n/a add\n/b add\n/a open\n/b open\n"
                         << "/a write 0 65536\n/b write 1048576 512\n/a " << action << "\n";
    std::ofstream(folder / "s.json")
        << R"({"disks": [{"name": "vda", "size": "1 MiB"}, {"name": "vdb", "size": "64 KiB"}],)"
        << R"("loads": [{"pattern": "trace", "trace": "t.log", "file": "/a")" << more << "}]}";
    try {
      read_scenario(folder / "s.json");
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("it was taken");
  };
  const std::string vda = R"(, "disk": "vda")";
  EXPECT_EQ(refusal("write 1044480 4096", vda), "it was taken");
  EXPECT_EQ(refusal("sync 1048576 4096"), "it was taken");
  const std::string place = (folder / "s.json") + ":1:112: /loads/0/trace: " + trace + ":8: ";
  EXPECT_EQ(refusal("write 1044992 4096", vda),
            place + "4096 bytes at 1044992 reach beyond the disk vda, which has 1048576");
  EXPECT_EQ(refusal("trim 1048576 512", vda),
            place + "512 bytes at 1048576 reach beyond the disk vda, which has 1048576");
  EXPECT_EQ(refusal("write 65536 512"),  // of each disk
            place + "512 bytes at 65536 reach beyond the disk vdb, which has 65536");
}

TEST(ScenarioText, ThoseThatWeShip) {
  std::size_t count = 0;
  for (const auto& entry : fs::directory_iterator(NBDELTA_SOURCE "/sim/scenarios")) {
    SCOPED_TRACE(entry.path());
    const Scenario scenario = read_scenario(entry.path());
    EXPECT_FALSE(scenario.guest.loads.empty());
    ++count;
  }
  EXPECT_GE(count, 6U);
}

TEST(Quantity, Units) {
  EXPECT_EQ(parse_bytes("512 B"), 512U);
  EXPECT_EQ(parse_bytes("64KiB"), 65536U);
  EXPECT_EQ(parse_bytes("1.5 GiB"), 1610612736U);
  EXPECT_EQ(parse_bytes_per_second("20 MiB/s"), 20971520U);
  EXPECT_EQ(parse_time("5 ms"), 5ms);
  EXPECT_EQ(parse_time("0.25 us"), 250ns);
  EXPECT_EQ(parse_time("2 min"), 120s);
  EXPECT_EQ(exact_bytes(0), "0 B");
  EXPECT_EQ(exact_bytes(65537), "65537 B");
  EXPECT_EQ(exact_bytes(65536), "64 KiB");
  EXPECT_EQ(exact_bytes(1088U << 20), "1088 MiB");
  EXPECT_EQ(exact_bytes(std::uint64_t{1} << 50), "1024 TiB");
  EXPECT_EQ(format_time(1250us), "1.25 ms");
  EXPECT_EQ(format_time(999us), "999 us");
  EXPECT_EQ(format_time(70s), "70.0 s");
  for (const char* text : {"", "5", "ms", "5 kb", "-1 s", "5 ms ", "1e3 s", "nan s", "inf s",
                           "9999999999999999999 h", "0x10 s", " 5 s"})
    EXPECT_THROW(parse_time(text), Error) << text;
}

TEST(JsonPlaces, KeysElementsAndEscapes) {
  const std::string text =
      "{\n"
      "  \"a\": [1, {\"b\": \"x,]}\\\"\"}],\n"
      "  \"c/d\": {\"\\u0065\": null},\n"
      "  \"f\": [[], {}, [true,\n"
      "    false]]\n"
      "}\n";
  const struct {
    const char* pointer;
    unsigned line;
    unsigned column;
  } kCases[] = {{"", 1, 1},        {"/a", 2, 3},         {"/a/0", 2, 9},     {"/a/1", 2, 12},
                {"/a/1/b", 2, 13}, {"/c~1d", 3, 3},      {"/c~1d/e", 3, 11}, {"/f/2/1", 5, 5},
                {"/f/1", 4, 13},   {"/f/1/none", 4, 13}, {"/none", 1, 1}};
  for (const auto& each : kCases) {
    const Place place = place_of(text, each.pointer);
    EXPECT_EQ(fmt::format("{}:{}", place.line, place.column),
              fmt::format("{}:{}", each.line, each.column))
        << each.pointer;
  }
}

TEST(JsonPlaces, AKeyThatItsObjectHasHad) {
  const struct {
    const char* text;
    const char* pointer;  // nullptr: none
  } kCases[] = {{"{}", nullptr},
                {R"({"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]})", nullptr},
                {R"({"a": "a", "b": ["a", "a"]})", nullptr},
                {R"({"a": 1, "a": 1})", "/a"},
                {R"([{"a": 1}, {"b": 1, "c": {}, "b": {}}])", "/1/b"},
                {R"({"a": {"b/c": 1, "b/c": 1}, "d": 1, "d": 1})", "/a/b~1c"}};
  for (const auto& each : kCases)
    EXPECT_EQ(repeated_key(each.text).value_or("none"),
              each.pointer == nullptr ? "none" : each.pointer)
        << each.text;
}

}  // namespace
}  // namespace nbdelta::sim
