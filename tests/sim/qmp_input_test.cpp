#include "sim/qmp_input.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

/// What scripts/not-qmp.qmp compares with QEMU is not repeated here: limits, and how bytes are cut.
namespace nbdelta::sim {
namespace {

std::string first_error(std::string_view bytes) {
  QmpInput input;
  input.feed(bytes);
  const auto value = input.next();
  return value ? value->error : "nothing";
}

TEST(QmpInput, TakesBytesOneByOne) {
  QmpInput input;
  for (const char c : std::string_view(R"({"a": [1, "x"]} {'b':-2})"))
    input.feed({&c, 1});
  const auto first = input.next();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->error, "");
  EXPECT_EQ(first->value.at("a").at(1), "x");
  const auto second = input.next();
  ASSERT_TRUE(second);
  EXPECT_EQ(second->value.at("b"), -2);
  EXPECT_FALSE(input.next());
}

TEST(QmpInput, ANumberEndsWithWhatComesAfterIt) {
  QmpInput input;
  input.feed("17");
  EXPECT_FALSE(input.next());
  input.feed(" ");
  EXPECT_EQ(input.next()->value, 17);
}

TEST(QmpInput, Depth) {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_EQ(first_error(nested(QmpInput::kDeepest)), "");
  EXPECT_EQ(first_error(nested(QmpInput::kDeepest + 1)), "JSON nesting depth limit exceeded");
}

TEST(QmpInput, Tokens) {
  const auto list = [](std::size_t tokens) {  // an odd number
    std::string text = "[1";
    for (std::size_t i = 3; i < tokens; i += 2)
      text += ",1";
    return text + "]";
  };
  EXPECT_EQ(first_error(list(QmpInput::kMostTokens - 1)), "");
  EXPECT_EQ(first_error(list(QmpInput::kMostTokens + 1)), "JSON token count limit exceeded");
}

TEST(QmpInput, Bytes) {
  const auto text = [](std::size_t bytes) { return "\"" + std::string(bytes - 2, 'a') + "\""; };
  EXPECT_EQ(first_error(text(QmpInput::kMostBytes - 1)), "");
  EXPECT_EQ(first_error(text(QmpInput::kMostBytes)), "JSON token size limit exceeded");
}

}  // namespace
}  // namespace nbdelta::sim
