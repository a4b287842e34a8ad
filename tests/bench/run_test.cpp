// What bench/run does beside measuring.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>

#include "tests/support/nbd_server.hpp"
#include "tests/support/process.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr int kUsage = 2;

Command bench_run(const Command& arguments) {
  return joined({NBDELTA_SOURCE "/bench/run", "--scale", "small", "--nbdelta", nbdelta_program(),
                 "--plugin", delta_plugin()},
                arguments);
}

struct WrongPath {
  const char* name;
  Command arguments;  // run in an empty folder but for a file "file"
  const char* message;
};

class WrongPaths : public ::testing::TestWithParam<WrongPath> {};

TEST_P(WrongPaths, AreRefusedBeforeAnythingIsMeasured) {
  const TempFolder folder;
  std::ofstream(folder / "file") << "x";
  const Outcome outcome = run(bench_run(joined({"full-cp"}, GetParam().arguments)),
                              {.input = {}, .environment = {}, .folder = folder.path()});
  EXPECT_EQ(outcome.status, kUsage);
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.err, HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Rows, WrongPaths,
    ::testing::Values(
        WrongPath{"no_folder", {"--folder", "nowhere"}, "--folder nowhere: there is no such"},
        WrongPath{"file_as_folder", {"--folder", "file"}, "--folder file: there is no such folder"},
        WrongPath{
            "json_nowhere", {"--json", "nowhere/a"}, "--json nowhere/a: no file can be there"},
        WrongPath{"json_is_a_folder", {"--json", "."}, "--json .: no file can be there"},
        WrongPath{"svg_below_a_file", {"--svg", "file/a"}, "--svg file/a: no file can be there"},
        WrongPath{"no_nbdelta", {"--nbdelta", "nowhere"}, "nowhere: not there"},
        WrongPath{"no_plugin", {"--plugin", "nowhere"}, "nowhere: not there"}),
    [](const auto& param) { return std::string(param.param.name); });

/// /proc/self/mounts, where a name has no spaces.
bool is_mounted_below(const std::string& folder) {
  std::ifstream mounts("/proc/self/mounts");
  const std::string text{std::istreambuf_iterator<char>(mounts), {}};
  return text.find(" " + folder + "/") != std::string::npos;
}

/// Whatever it is doing then: mounting, making the data, copying.
TEST(BenchRun, UnmountsAndRemovesItsFolderWhenItIsInterrupted) {
  for (const int signal : {SIGINT, SIGTERM})
    for (const milliseconds after : {milliseconds(0), milliseconds(200), milliseconds(1500)}) {
      const TempFolder folder;
      Background bench(bench_run({"reflink", "--rounds", "99", "--folder", folder.path()}));
      while (bench.running() && !is_mounted_below(folder.path()))
        std::this_thread::sleep_for(milliseconds(1));
      if (!bench.running() && bench.out().find("not run") != std::string::npos)
        GTEST_SKIP() << bench.out();
      std::this_thread::sleep_for(after);
      EXPECT_TRUE(bench.running()) << bench.err();
      bench.signal(signal);
      const auto outcome = bench.wait(milliseconds(60'000));
      ASSERT_TRUE(outcome);
      EXPECT_EQ(outcome->status, 128 + signal) << outcome->err;
      EXPECT_FALSE(is_mounted_below(folder.path())) << after.count();
      EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << after.count();
    }
}

/// Whatever a case compares of a client of ours, its memory is bounded somewhere; `open` has none.
TEST(BenchRun, BoundsTheMemoryOfEveryClient) {
  const std::string missing = run_ok({"python3", "-c", R"(
import sys
sys.path.insert(0, sys.argv[1])
from cases import CASES
bounds = [bound for case in CASES for bound in case.bounds]
bounded = {(bound.scenario, bound.ours) for bound in bounds if bound.unit == 'MiB'}
for bound in bounds:
    if (bound.scenario, bound.ours) not in bounded and bound.ours != 'nbdkit delta':
        print(bound.scenario.__name__, bound.ours)
)",
                                      NBDELTA_SOURCE "/bench"});
  EXPECT_EQ(missing, "");
}

}  // namespace
}  // namespace nbdelta::testing
