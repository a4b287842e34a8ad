#include "client/backup/names.hpp"

#include <gtest/gtest.h>

#include <optional>
#include <string>

namespace nbdelta::client::backup {
namespace {

const SessionId kSession{.chain = "0123abcd", .number = 2};
constexpr std::size_t kLongestNodeName = 31;  // QEMU include/block/block_int-common.h, node_name

TEST(Names, AreBuiltFromChainAndNumber) {
  EXPECT_EQ(bitmap_name(kSession), "nbdelta-0123abcd-0002");
  EXPECT_EQ(overlay_node_name(kSession, 0), "nbdelta-0123abcd-0002-0");
  EXPECT_EQ(overlay_node_name(kSession, 17), "nbdelta-0123abcd-0002-17");
  EXPECT_EQ(file_node_name(kSession, 3), "nbdelta-0123abcd-0002-3-f");
  EXPECT_EQ(active_job_name(kSession, 3), "nbdelta-0123abcd-0002-3-a");
  EXPECT_EQ(lower_job_name(kSession, 3), "nbdelta-0123abcd-0002-3-b");
  EXPECT_EQ(overlay_file_name(kSession, "vda"), "nbdelta-0123abcd-0002-vda.qcow2");
  EXPECT_EQ(overlay_file_name(kSession, "a/b c"), "nbdelta-0123abcd-0002-a_b_c.qcow2");
}

TEST(Names, NodeNamesFitIntoQemusLimit) {
  const SessionId late{.chain = "ffffffff", .number = 99'999'999};
  EXPECT_LE(file_node_name(late, 99).size(), kLongestNodeName) << file_node_name(late, 99);
  EXPECT_LE(file_node_name(kSession, 9'999'999).size(), kLongestNodeName);
}

TEST(Names, OfASessionLeadBackToIt) {
  for (const std::uint32_t number : {0U, 1U, 9999U, 10'000U, UINT32_MAX}) {
    const SessionId id{.chain = "00ff00ff", .number = number};
    EXPECT_EQ(session_of(bitmap_name(id)), id) << number;
    EXPECT_EQ(session_of(overlay_node_name(id, 12)), id) << number;
    EXPECT_EQ(session_of(file_node_name(id, 12)), id) << number;
    EXPECT_EQ(session_of(active_job_name(id, 12)), id) << number;
    EXPECT_EQ(session_of(lower_job_name(id, 12)), id) << number;
    EXPECT_EQ(session_of(overlay_file_name(id, "vda")), id) << number;
    EXPECT_EQ(session_of(overlay_file_name(id, "vda") + ".at"), id) << number;
  }
}

TEST(Names, OfOthersAreNotOurs) {
  const char* const kOthers[] = {
      "",
      "nbdelta-",
      "nbdelta",
      "nbdelta-0123abcd",
      "nbdelta-0123abcd-",
      "nbdelta-0123abcd-x",
      "nbdelta-0123abcd--1",
      "nbdelta-0123abcd-+1",
      "nbdelta-0123abcd- 1",
      "nbdelta-0123abcd-0002x",
      "nbdelta-0123abcd-0002.qcow2",
      "nbdelta-0123abcd-99999999999",  // more than 32 bits
      "nbdelta-0123ABCD-0002",
      "nbdelta-0123abcg-0002",
      "nbdelta-0123abc-0002",
      "nbdelta-0123abcde-0002",
      "Nbdelta-0123abcd-0002",
      "xnbdelta-0123abcd-0002",
      " nbdelta-0123abcd-0002",
      "nbdelta_0123abcd_0002",
      "nbdelta-current-vda.qcow2",
      "nbdelta-currents-1.qcow2",
      "nbdelta-session.json",
      "nbdelta-lock",
      "libvirt-1-format",
      "#block186",
      "bitmap0",
  };
  for (const char* other : kOthers)
    EXPECT_EQ(session_of(other), std::nullopt) << other;
}

TEST(Names, TheSessionIsTakenFromAName) {
  const auto session = session_of("nbdelta-deadbeef-0042-sda-1.qcow2");
  ASSERT_TRUE(session);
  EXPECT_EQ(session->chain, "deadbeef");
  EXPECT_EQ(session->number, 42U);
}

TEST(Names, ChainsHaveEightHexDigits) {
  EXPECT_EQ(chain_name(0), "00000000");
  EXPECT_EQ(chain_name(0xabc), "00000abc");
  EXPECT_EQ(chain_name(0x123456789abcdef0), "9abcdef0");
  EXPECT_TRUE(session_of(bitmap_name({chain_name(~0ULL), 1})));
}

struct FileSafeRow {
  const char* name;
  const char* expected;
};

TEST(Names, AreMadeSafeForFiles) {
  const FileSafeRow kRows[] = {
      {"vda", "vda"},
      {"drive-virtio-disk0", "drive-virtio-disk0"},
      {"A.b_C-9", "A.b_C-9"},
      {"", "_"},
      {".", "_."},
      {"..", "_.."},
      {"../../etc/passwd", "_.._.._etc_passwd"},
      {".hidden", "_.hidden"},
      {"-rf", "_-rf"},
      {"#block186", "_block186"},
      {"a b\nc\td", "a_b_c_d"},
      {"/dev/sda", "_dev_sda"},
      {"gr\xc3\xbc\xc3\x9f", "gr____"},
      {"a\\b:c*", "a_b_c_"},
  };
  for (const FileSafeRow& row : kRows) {
    EXPECT_EQ(file_safe(row.name), row.expected) << row.name;
    EXPECT_EQ(file_safe(file_safe(row.name)), row.expected) << row.name;
  }
  EXPECT_EQ(file_safe(std::string("a\0b", 3)), "a_b");
}

TEST(Names, PathsAreTakenApart) {
  EXPECT_EQ(base_name("/a/b/c.qcow2"), "c.qcow2");
  EXPECT_EQ(base_name("c.qcow2"), "c.qcow2");
  EXPECT_EQ(base_name("/c"), "c");
  EXPECT_EQ(base_name("/a/b/"), "");
  EXPECT_EQ(base_name(""), "");
  EXPECT_EQ(folder_of("/a/b/c.qcow2"), "/a/b");
  EXPECT_EQ(folder_of("a/c"), "a");
  EXPECT_EQ(folder_of("c.qcow2"), ".");
  EXPECT_EQ(folder_of("/c"), "/");
  EXPECT_EQ(folder_of("/"), "/");
  EXPECT_EQ(folder_of(""), ".");
}

}  // namespace
}  // namespace nbdelta::client::backup
