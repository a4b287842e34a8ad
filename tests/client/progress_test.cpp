#include "client/pull/progress.hpp"

#include <gtest/gtest.h>

#include "base/arithmetic.hpp"

namespace nbdelta::client::pull {
namespace {

TEST(Progress, LineSaysBytesShareRateAndTimeLeft) {
  EXPECT_EQ(progress_line({0, 0, 3}), "reading the map");
  EXPECT_EQ(progress_line({0, kGiB, 3}), "0 B of 1.00 GiB, 0 %");
  EXPECT_EQ(progress_line({kGiB, 4 * kGiB, 2}),
            "1.00 GiB of 4.00 GiB, 25 %, 512 MiB/s, 6.00 s left");
  EXPECT_EQ(progress_line({4 * kGiB, 4 * kGiB, 8}), "4.00 GiB of 4.00 GiB, 100 %, 512 MiB/s");
}

}  // namespace
}  // namespace nbdelta::client::pull
