#include "base/utf8.hpp"

#include <gtest/gtest.h>

namespace nbdelta {
namespace {

TEST(AsUtf8, LeavesWhatIsUtf8) {
  for (const char* text : {"", "a line\n", "\xC3\xBC", "\xE2\x82\xAC", "\xF0\x9F\x92\xBE",
                           "\xED\x9F\xBF", "\xEE\x80\x80", "\xF4\x8F\xBF\xBF", "\xEF\xBF\xBF"})
    EXPECT_EQ(as_utf8(text), text);
  EXPECT_EQ(as_utf8(std::string_view("\0", 1)), std::string_view("\0", 1));
}

TEST(AsUtf8, ReplacesEachOtherByte) {
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(as_utf8("7.2\xFC!"), "7.2" + bad + "!");
  EXPECT_EQ(as_utf8("\xFE"), bad);
  EXPECT_EQ(as_utf8("cut \xE2\x82"), "cut " + bad + bad);
  EXPECT_EQ(as_utf8("\xC0\x80"), bad + bad);                      // overlong
  EXPECT_EQ(as_utf8("\xE0\x9F\xBF"), bad + bad + bad);            // likewise
  EXPECT_EQ(as_utf8("\xF0\x8F\xBF\xBF"), bad + bad + bad + bad);  // likewise
  EXPECT_EQ(as_utf8("\xED\xA0\x80"), bad + bad + bad);            // a surrogate
  EXPECT_EQ(as_utf8("\xF4\x90\x80\x80"), bad + bad + bad + bad);  // beyond U+10FFFF
}

}  // namespace
}  // namespace nbdelta
