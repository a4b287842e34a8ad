#pragma once

#include <boost/json/value.hpp>
#include <cstddef>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nbdelta::sim {

/// One value that a client has sent, or what is wrong with it in QEMU's words.
struct QmpValue {
  boost::json::value value;
  std::string error;  // empty: none
};

/// What QEMU makes of the bytes that a client sends: values one after the other, wherever the lines
/// end (QEMU qobject/json-lexer.c, json-streamer.c, json-parser.c). After a character that belongs
/// to nothing all is skipped up to a bracket or a control character.
class QmpInput {
 public:
  static constexpr std::size_t kMostBytes = std::size_t{64} << 20;  // of one value's tokens
  static constexpr std::size_t kMostTokens = std::size_t{2} << 20;
  static constexpr std::size_t kDeepest = 1024;

  void feed(std::string_view bytes);
  std::optional<QmpValue> next();

  struct Token {
    enum class Kind : unsigned char { punctuation, text, integer, real, keyword };
    Kind kind;
    std::string text;
  };

 private:
  enum class State : unsigned char {
    start,
    keyword,
    sign,
    zero,
    digits,
    point,
    fraction,
    exponent,
    exponent_sign,
    exponent_digits,
    text,
    escape,
    recovery,
  };
  enum class Step : unsigned char { stay, take, end_before, end_after, stray };

  struct Move {
    State state;
    Step step;
  };
  Move move(char c) const;
  void take(char c);
  void end_token();
  void end_value(std::string error);

  State state_ = State::start;
  char quote_ = '"';
  std::string token_;
  std::vector<Token> tokens_;
  std::size_t bytes_ = 0;
  int braces_ = 0;
  int brackets_ = 0;
  std::deque<QmpValue> values_;
};

}  // namespace nbdelta::sim
