#include "sim/work_progress.hpp"

#include <gtest/gtest.h>

namespace nbdelta::sim {
namespace {

TEST(WorkProgressLine, SaysTheShareTheRateAndWhatIsLeft) {
  EXPECT_EQ(work_progress_line(0, 200, "seeds", 0), "0 of 200 seeds, 0 %");
  EXPECT_EQ(work_progress_line(0, 200, "seeds", 3), "0 of 200 seeds, 0 %");
  EXPECT_EQ(work_progress_line(50, 200, "seeds", 2),
            "50 of 200 seeds, 25 %, 25 a second, 6.00 s left");
  EXPECT_EQ(work_progress_line(200, 200, "seeds", 2), "200 of 200 seeds, 100 %, 100 a second");
  EXPECT_EQ(work_progress_line(0, 0, "backups", 2), "0 of 0 backups, 0 %");
}

}  // namespace
}  // namespace nbdelta::sim
