#include "base/error.hpp"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

namespace nbdelta {
namespace {

TEST(Error, CarriesMessageAndNumber) {
  try {
    fail(ENOSPC, "{}: no room for {} bytes", "out.qcow2", 512);
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "out.qcow2: no room for 512 bytes");
    EXPECT_EQ(error.error_number(), ENOSPC);
    return;
  }
  ADD_FAILURE();
}

TEST(Error, OfASystemCallSaysWhatErrnoSays) {
  try {
    errno = ENOENT;
    fail_errno("{}: cannot open", "disk.qcow2");
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "disk.qcow2: cannot open: No such file or directory");
    EXPECT_EQ(error.error_number(), ENOENT);
    return;
  }
  ADD_FAILURE();
}

TEST(Error, InvariantThatHoldsIsSilent) {
  invariant(true, "never printed");
}

TEST(InvariantDeathTest, AbortsAndNamesThePlace) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(invariant(false, "runs are joined"),
               "internal error: runs are joined .*error_test.cpp:[0-9]+");
}

}  // namespace
}  // namespace nbdelta
