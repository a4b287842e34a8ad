#include "sim/window_watch.hpp"

#include <gmock/gmock.h>

#include <chrono>

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class Windows : public ::testing::Test {
 protected:
  static Clock::Time at(Clock::Duration time) { return Clock::Time(1h) + time; }
  void freeze() { watch_.agent_answered("guest-fsfreeze-freeze", at(10ms), at(30ms)); }
  void thaw(Clock::Duration begun) {
    watch_.agent_answered("guest-fsfreeze-thaw", at(begun), at(begun + 5ms));
  }
  void transaction(Clock::Duration begun) {
    watch_.qemu_answered("transaction", at(begun), at(begun + 4ms));
  }

  WindowWatch watch_;
};

TEST_F(Windows, AreTheirThreeParts) {
  watch_.agent_answered("guest-info", at(0ms), at(1ms));
  watch_.did("write journal");
  freeze();
  transaction(31ms);
  thaw(36ms);
  watch_.agent_answered("guest-fsfreeze-status", at(42ms), at(43ms));
  transaction(50ms);
  ASSERT_TRUE(watch_.window());
  EXPECT_EQ(watch_.window()->length, 31ms);
  EXPECT_EQ(watch_.window()->agent, 25ms);
  EXPECT_EQ(watch_.window()->qemu, 4ms);
  EXPECT_EQ(watch_.window()->own(), 2ms);
  EXPECT_THAT(watch_.window()->besides, IsEmpty());
}

TEST_F(Windows, AllElseIsOurs) {
  freeze();
  transaction(30ms);
  transaction(34ms);
  watch_.qemu_answered("query-status", at(38ms), at(39ms));
  watch_.agent_answered("guest-sync-delimited", at(39ms), at(40ms));
  watch_.did("write journal");
  thaw(45ms);
  ASSERT_TRUE(watch_.window());
  EXPECT_EQ(watch_.window()->own(), 4ms + 1ms + 1ms + 5ms);
  EXPECT_THAT(watch_.window()->besides,
              ElementsAre("transaction", "query-status", "guest-sync-delimited", "write journal"));
}

TEST_F(Windows, NeedBothEnds) {
  transaction(0ms);
  thaw(5ms);
  EXPECT_FALSE(watch_.window());
  freeze();
  EXPECT_FALSE(watch_.window());
}

TEST_F(Windows, AGuestThatStaysFrozenCountsUntilNow) {
  EXPECT_EQ(watch_.longest_freeze(at(1h)), 0s);
  watch_.frozen(true, at(1s));
  watch_.frozen(false, at(8s));
  watch_.frozen(true, at(10s));
  EXPECT_EQ(watch_.longest_freeze(at(12s)), 7s);
  EXPECT_EQ(watch_.longest_freeze(at(20s)), 10s);
  watch_.frozen(false, at(13s));
  EXPECT_EQ(watch_.longest_freeze(at(20s)), 7s);
}

}  // namespace
}  // namespace nbdelta::sim
