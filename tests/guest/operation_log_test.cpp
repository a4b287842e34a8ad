#include "tests/guest/operation_log.hpp"

#include <gtest/gtest.h>

#include <string>

#include "base/error.hpp"

namespace nbdelta::testing {
namespace {

TEST(OperationLog, PairsStartsAndEnds) {
  const auto operations = parse_operation_log(
      "start 1 0 write 4096 4096\n"
      "done 1 0 write 4096 4096 250 1000000\n"
      "start 2 1 zero 65536 65536\n"
      "start 3 0 discard 0 65536\n"
      "failed 3 0 discard 0 65536 40 1000300\n"
      "start 4 0 wri");
  ASSERT_EQ(operations.size(), 3U);
  EXPECT_EQ(operations[0].sequence, 1U);
  EXPECT_EQ(operations[0].offset, 4096U);
  EXPECT_EQ(operations[0].length, 4096U);
  EXPECT_EQ(operations[0].started, 0U);
  EXPECT_EQ(operations[0].done, 1U);
  EXPECT_EQ(operations[0].latency.count(), 250);
  EXPECT_EQ(operations[0].ended_at.count(), 1'000'000);
  EXPECT_EQ(operations[1].disk, 1U);
  EXPECT_EQ(operations[1].kind, LoggedOperation::Kind::zero);
  EXPECT_FALSE(operations[1].done);
  EXPECT_FALSE(operations[1].failed);
  EXPECT_EQ(operations[2].kind, LoggedOperation::Kind::discard);
  EXPECT_FALSE(operations[2].done);
  EXPECT_TRUE(operations[2].failed);

  EXPECT_EQ(first_not_done(operations), 2U);
  EXPECT_EQ(last_started(operations), 3U);
}

TEST(OperationLog, TheLongestStallIsOfWhatHasEndedSince) {
  const std::string before =
      "start 1 0 write 4096 4096\n"
      "done 1 0 write 4096 4096 9000 1000000\n"
      "start 2 0 write 4096 4096\n";
  const std::string after =
      "file 1300 1001000\n"
      "done 2 0 write 4096 4096 250 1002000\n"
      "file 7000";
  EXPECT_EQ(longest_stall(before).count(), 9000);
  EXPECT_EQ(longest_stall(before + after).count(), 9000);
  EXPECT_EQ(longest_stall(before + after, before.size()).count(), 1300);
  EXPECT_EQ(longest_stall(before + after, before.size() + 3).count(), 250);
  EXPECT_EQ(longest_stall("").count(), 0);
  EXPECT_EQ(parse_operation_log(before + after).size(), 2U);
}

TEST(OperationLog, IsEmptyWhereNothingWasDone) {
  const auto operations = parse_operation_log("");
  EXPECT_TRUE(operations.empty());
  EXPECT_EQ(first_not_done(operations), 1U);
  EXPECT_EQ(last_started(operations), 0U);
}

TEST(OperationLog, RefusesNonsense) {
  for (const std::string log : {
           "begin 1 0 write 0 4096\n",
           "start 1 0 trim 0 4096\n",
           "start 1 0 write 0\n",
           "start 1 0 write 0 4096 7\n",
           "done 1 0 write 0 4096 1 1\n",
           "start 2 0 write 0 4096\nstart 1 0 write 0 4096\n",
           "start 1 0 write 0 4096\ndone 1 0 write 0 4096\n",
           "start 1 0 write 0 4096\ndone 1 0 write 0 4096 1 1\ndone 1 0 write 0 4096 1 1\n",
       })
    EXPECT_THROW(parse_operation_log(log), Error) << log;
}

}  // namespace
}  // namespace nbdelta::testing
