#include <algorithm>
#include <sstream>

#include "tests/client/session/session_test.hpp"

/// QEMU may run on another host than nbdelta, with a cache of its own over the storage: what was
/// committed must be durable by QEMU's own hand before the file that it came from goes.
namespace nbdelta::testing {
namespace {

std::vector<std::string> lines_of(const std::string& path) {
  std::istringstream text(text_of_file(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);)
    lines.push_back(line);
  return lines;
}

/// One more than the place of the last such line; 0: there is none.
std::size_t last(const std::vector<std::string>& lines, const std::string& line) {
  return static_cast<std::size_t>(lines.rend() - std::find(lines.rbegin(), lines.rend(), line));
}

class LowerCommit : public ::testing::TestWithParam<std::string> {};

TEST_P(LowerCommit, IsFlushedByQemu) {
  Machine machine({{.name = "vda", .format = GetParam()}});
  const std::string log = machine.folder() + "/io";
  machine.quit();
  machine.start({"LD_PRELOAD=" NBDELTA_LOG_IMAGE_IO, "NBDELTA_LOG_IMAGE_IO=" + log});
  Points points(machine);
  const MachineDisk& disk = machine.disks().front();
  const Command by_overlay{"--tracking", "overlay"};
  points.backup(by_overlay);
  machine.write(disk, "write -P 7 1M 3M");
  points.backup(by_overlay);

  const std::vector<std::string> lines = lines_of(log);
  const std::string base = machine.image(disk);
  const std::string overlay = machine.current(disk);
  ASSERT_GT(last(lines, "data " + base), 0U) << ::testing::PrintToString(lines);
  ASSERT_GT(last(lines, "header " + overlay), 0U) << ::testing::PrintToString(lines);
  EXPECT_GT(last(lines, "sync " + base), last(lines, "data " + base));
  EXPECT_GT(last(lines, "sync " + overlay), last(lines, "header " + overlay));
  if (disk.format == "raw") {  // the header names it before the job has ended
    const auto at = [&](const std::string& line) {
      return lines.begin() + static_cast<std::ptrdiff_t>(last(lines, line));
    };
    EXPECT_GT(std::count(at("data " + base), at("header " + overlay), "sync " + base), 0);
  }
  points.check();
}

INSTANTIATE_TEST_SUITE_P(Flush, LowerCommit, ::testing::Values("qcow2", "raw"),
                         [](const auto& row) { return row.param; });

}  // namespace
}  // namespace nbdelta::testing
