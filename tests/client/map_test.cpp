#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "base/arithmetic.hpp"
#include "tests/client/client_run.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

std::vector<NbdExtent> our_map(const Command& arguments) {
  Command command = nbdelta_command({"map", "--json"});
  command.insert(command.end(), arguments.begin(), arguments.end());
  std::vector<NbdExtent> map;
  const auto parsed = boost::json::parse(run_ok(command));
  for (const auto& extent : parsed.as_array())
    map.push_back({extent.at("offset").to_number<std::uint64_t>(),
                   extent.at("length").to_number<std::uint64_t>(),
                   extent.at("type").to_number<std::uint64_t>()});
  return map;
}

TEST(Map, IsWhatNbdinfoSays) {
  const TempFolder folder;
  create_image(folder / "disk.raw", "raw", 20 * kMiB);
  qemu_io(folder / "disk.raw", "raw", {"write -q -P 1 1M 3M", "write -q -P 2 9M 64k"});
  const NbdServer server = NbdServer::nbdkit("file", {folder / "disk.raw"});
  EXPECT_EQ(our_map({server.uri()}), nbdinfo_map(server.uri()));
}

TEST(Map, OfADiskLargerThanOneRegion) {
  const NbdServer server = NbdServer::nbdkit("memory", {"5000G"});
  EXPECT_EQ(our_map({server.uri()}), (std::vector<NbdExtent>{{0, 5000 * kGiB, 3}}));
}

TEST(Map, OfAnEmptyDiskIsAnEmptyArray) {
  const NbdServer server = NbdServer::nbdkit("memory", {"0"});
  EXPECT_EQ(our_map({server.uri()}), std::vector<NbdExtent>{});
}

TEST(Map, TableHasTotals) {
  const NbdServer server = NbdServer::nbdkit("pattern", {"1M"});
  const Outcome outcome = nbdelta({"map", server.uri()});
  EXPECT_EQ(outcome.out,
            "               0          1048576  data\n"
            "\n"
            "data               1.00 MiB in 1 extent\n"
            "disk               1.00 MiB\n");
  EXPECT_EQ(outcome.err, "");
}

TEST(Map, RoundTripsDoNotAddUp) {
  const NbdServer server =
      NbdServer::nbdkit("memory", {"128G", "delay-extents=50ms"}, {"--filter=delay"});
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(our_map({server.uri()}).size(), 1U);  // 64 regions: 3.2 s one after the other
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(1500));
}

TEST(Map, ErrorBeforeTheEndOfItsTextIsOne) {
  const TempFolder folder;
  const NbdServer server =
      NbdServer::nbdkit("sparse-random", {"64M", "percent=50", "runlength=32768"});
  const std::string text = folder / "map.txt";
  const auto map_with = [&](const char* fault) {
    const std::string command = fmt::format(
        "exec env ASAN_OPTIONS=detect_leaks=0 strace -qq -o /dev/null -P '{0}' -e {1} \"$@\" "
        ">'{0}'",
        text, fault);  // leaks are not looked for in traced processes
    return run({"sh", "-c", command, "sh", nbdelta_command({})[0], "map", server.uri()});
  };
  EXPECT_EQ(map_with("trace=write").status, 0);
  EXPECT_GT(std::filesystem::file_size(text), 3 * 4096U);
  const Outcome outcome = map_with("inject=write:error=EIO:when=1");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("Input/output error"), std::string::npos) << outcome.err;
}

TEST(Map, ErrorsAreForPeople) {
  const Outcome nobody = nbdelta({"map", "nbd+unix:///?socket=/nowhere"});
  EXPECT_EQ(nobody.status, 1);
  EXPECT_EQ(nobody.err,
            "nbdelta: nbd+unix:///?socket=/nowhere: connect: No such file or directory\n");
  EXPECT_EQ(nbdelta({"map"}).status, 2);
  EXPECT_EQ(nbdelta({}).status, 2);
  EXPECT_EQ(nbdelta({"map", "gopher://x"}).status, 1);
  const NbdServer server = NbdServer::nbdkit("memory", {"1M"}, {"--exportname=disk"});
  EXPECT_EQ(nbdelta({"map", server.uri(), "--context", "base:allocation"}).status, 2);
}

TEST(CommandLine, HelpShowsAnExampleAndTheExitStatuses) {
  for (const char* command : {"pull", "map"}) {
    const Outcome outcome = nbdelta({command, "--help"});
    EXPECT_EQ(outcome.status, 0);
    EXPECT_NE(outcome.out.find("Example"), std::string::npos);
    EXPECT_NE(outcome.out.find("Exit status"), std::string::npos);
  }
  EXPECT_EQ(nbdelta({"--version"}).out.find("nbdelta "), 0U);
}

}  // namespace
}  // namespace nbdelta::testing
