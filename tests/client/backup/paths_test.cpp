#include "client/backup/paths.hpp"

#include <gtest/gtest.h>

#include <string>

#include "base/error.hpp"

namespace nbdelta::client::backup {
namespace {

Paths paths_of(const std::vector<std::string>& texts) {
  std::vector<std::pair<std::string, std::string>> rules;
  for (const std::string& text : texts)
    rules.push_back(Paths::parse_rule(text));
  return Paths(rules);
}

TEST(Paths, AreTheSameWithoutRules) {
  const Paths paths;
  EXPECT_EQ(paths.to_local("/a/b"), "/a/b");
  EXPECT_EQ(paths.to_qemu("/a/b"), "/a/b");
  EXPECT_EQ(paths.to_local(""), "");
}

struct Row {
  const char* name;
  std::vector<std::string> rules;
  const char* qemu;
  const char* local;
};

class PathsTable : public ::testing::TestWithParam<Row> {};

TEST_P(PathsTable, MapsBothWays) {
  const Paths paths = paths_of(GetParam().rules);
  EXPECT_EQ(paths.to_local(GetParam().qemu), GetParam().local);
  EXPECT_EQ(paths.to_qemu(GetParam().local), GetParam().qemu);
}

INSTANTIATE_TEST_SUITE_P(
    Rows, PathsTable,
    ::testing::Values(
        Row{"below_the_folder", {"/a/b=/mnt/x"}, "/a/b/disk.qcow2", "/mnt/x/disk.qcow2"},
        Row{"deeper", {"/a/b=/mnt/x"}, "/a/b/c/d.raw", "/mnt/x/c/d.raw"},
        Row{"the_path_itself", {"/a/d.raw=/mnt/e.raw"}, "/a/d.raw", "/mnt/e.raw"},
        Row{"neighbour_with_the_same_beginning", {"/a/b=/mnt/x"}, "/a/bc/d", "/a/bc/d"},
        Row{"folder_above", {"/a/b=/mnt/x"}, "/a/d", "/a/d"},
        Row{"slash_after_qemus", {"/a/b/=/mnt/x"}, "/a/b/d", "/mnt/x/d"},
        Row{"slash_after_the_local", {"/a/b=/mnt/x//"}, "/a/b/d", "/mnt/x/d"},
        Row{"first_rule_wins", {"/a/b=/first", "/a=/second"}, "/a/b/d", "/first/d"},
        Row{"second_rule", {"/a/b=/first", "/a=/second"}, "/a/c/d", "/second/c/d"},
        Row{"qemus_root", {"/=/mnt/host"}, "/a/d", "/mnt/host/a/d"},
        Row{"our_root", {"/mnt/guests=/"}, "/mnt/guests/a/d", "/a/d"},
        Row{"equals_sign_in_the_local_path", {"/a=/mnt/x=y"}, "/a/d", "/mnt/x=y/d"}),
    [](const auto& row) { return row.param.name; });

TEST(Paths, TheFirstOfTwoRulesAppliesThoughTheSecondIsLonger) {
  const Paths paths = paths_of({"/a=/first", "/a/b=/second"});
  EXPECT_EQ(paths.to_local("/a/b/d"), "/first/b/d");
  EXPECT_EQ(paths.to_qemu("/second/d"), "/a/b/d");
}

TEST(Paths, TheLocalNeighbourWithTheSameBeginningStays) {
  const Paths paths = paths_of({"/a/b=/mnt/x"});
  EXPECT_EQ(paths.to_qemu("/mnt/xy/d"), "/mnt/xy/d");
  EXPECT_EQ(paths.to_qemu("/a/b/d"), "/a/b/d");
}

TEST(Paths, BadRulesAreRefused) {
  for (const char* text : {"", "=", "/a", "/a=", "=/mnt", "/a:/mnt"}) {
    try {
      Paths::parse_rule(text);
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EINVAL) << text;
      EXPECT_NE(std::string(error.what()).find("QEMU=LOCAL"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace nbdelta::client::backup
