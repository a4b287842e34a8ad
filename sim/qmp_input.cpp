#include "sim/qmp_input.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <utility>

namespace nbdelta::sim {
namespace {

namespace json = boost::json;
using Token = QmpInput::Token;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_structural(char c) {
  return std::string_view("{}[],:").find(c) != std::string_view::npos;
}

/// What may stand in a text: not a control character, and not what is never part of UTF-8.
bool is_of_text(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte >= 0x20 && byte < 0xFE;
}

void append_utf8(std::string& out, std::uint32_t point) {
  const auto tail = [&](unsigned shift) {
    out += static_cast<char>(0x80 | ((point >> shift) & 0x3F));
  };
  if (point == 0) {
    out += "\xC0\x80";  // QEMU's strings end at 0
  } else if (point < 0x80) {
    out += static_cast<char>(point);
  } else if (point < 0x800) {
    out += static_cast<char>(0xC0 | (point >> 6));
    tail(0);
  } else if (point < 0x10000) {
    out += static_cast<char>(0xE0 | (point >> 12));
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0 | (point >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

/// As QEMU's util/unicode.c has it: these are in no text.
bool is_noncharacter(std::uint32_t point) {
  return (point >= 0xFDD0 && point <= 0xFDEF) || (point & 0xFFFE) == 0xFFFE;
}

/// The length of the sequence at the beginning of `text`, where 0 has two bytes; 0: it is no UTF-8.
std::size_t utf8_length(std::string_view text) {
  if (text.starts_with("\xC0\x80"))
    return 2;
  const auto first = static_cast<unsigned char>(text[0]);
  const std::size_t length = first < 0x80                    ? 1
                             : first >= 0xC2 && first < 0xE0 ? 2
                             : first >= 0xE0 && first < 0xF0 ? 3
                             : first >= 0xF0 && first < 0xF5 ? 4
                                                             : 0;
  if (length == 0 || length > text.size())
    return 0;
  std::uint32_t point = length == 1 ? first : first & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80)
      return 0;
    point = (point << 6) | (static_cast<unsigned char>(text[i]) & 0x3FU);
  }
  const auto second = length > 1 ? static_cast<unsigned char>(text[1]) : 0U;
  const bool out_of_range = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                            (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
  return out_of_range || is_noncharacter(point) ? 0 : length;
}

/// As an answer quotes it: up to a NUL, and what is no UTF-8 is shown as U+FFFD.
std::string stray(std::string_view text) {
  text = text.substr(0, text.find('\0'));
  std::string shown;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    shown += length == 0 ? "\xEF\xBF\xBD" : text.substr(0, length);
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return fmt::format("JSON parse error, stray '{}'", shown);
}

struct ParseFailure {
  std::string what;
};

/// One value of its tokens.
class Parser {
 public:
  explicit Parser(const std::vector<Token>& tokens) : tokens_(&tokens) {}

  json::value parse() {
    const Token& token = take();
    switch (token.kind) {
      case Token::Kind::text:
        return json::value(text(token.text));
      case Token::Kind::integer:
        return integer(token.text);
      case Token::Kind::real:
        return std::strtod(token.text.c_str(), nullptr);
      case Token::Kind::keyword:
        return keyword(token.text);
      case Token::Kind::punctuation:
        break;
    }
    if (token.text == "{")
      return object();
    if (token.text == "[")
      return array();
    throw ParseFailure{"expecting value"};
  }

 private:
  const Token& take() {
    if (at_ == tokens_->size())
      throw ParseFailure{"premature EOI"};
    return (*tokens_)[at_++];
  }

  bool skip(std::string_view punctuation) {
    if (at_ == tokens_->size() || (*tokens_)[at_].kind != Token::Kind::punctuation ||
        (*tokens_)[at_].text != punctuation)
      return false;
    ++at_;
    return true;
  }

  json::value object() {
    json::object out;
    if (skip("}"))
      return out;
    do {
      const json::value key = parse();
      if (!key.is_string())
        throw ParseFailure{"key is not a string in object"};
      if (!skip(":"))
        throw ParseFailure{"missing : in object pair"};
      json::value value = parse();
      if (!out.emplace(key.get_string(), std::move(value)).second)
        throw ParseFailure{"duplicate key"};
    } while (skip(","));
    if (!skip("}"))
      throw ParseFailure{"expected separator in dict"};
    return out;
  }

  json::value array() {
    json::array out;
    if (skip("]"))
      return out;
    do {
      out.push_back(parse());
    } while (skip(","));
    if (!skip("]"))
      throw ParseFailure{"expected separator in list"};
    return out;
  }

  static json::value keyword(const std::string& word) {
    if (word == "true" || word == "false")
      return word == "true";
    if (word == "null")
      return nullptr;
    throw ParseFailure{fmt::format("invalid keyword '{}'", word)};
  }

  static json::value integer(const std::string& digits) {
    const char* end = digits.data() + digits.size();
    std::int64_t number = 0;
    if (std::from_chars(digits.data(), end, number).ec == std::errc())
      return number;
    std::uint64_t large = 0;
    if (std::from_chars(digits.data(), end, large).ec == std::errc())
      return large;
    return std::strtod(digits.c_str(), nullptr);
  }

  /// The hexadecimal number of a \u at `at`; nothing where there is none.
  static std::optional<std::uint32_t> code_unit(std::string_view in, std::size_t at) {
    if (at + 6 > in.size() || in.substr(at, 2) != "\\u")
      return std::nullopt;
    std::uint32_t unit = 0;
    const char* end = in.data() + at + 6;
    const auto [stopped, error] = std::from_chars(in.data() + at + 2, end, unit, 16);
    return error == std::errc() && stopped == end ? std::optional(unit) : std::nullopt;
  }

  /// A \u at `at`, or two that are a pair; `at` moves behind it.
  static std::uint32_t escaped(std::string_view in, std::size_t& at) {
    const std::size_t first = at;
    std::optional<std::uint32_t> point = code_unit(in, at);
    at += 6;
    if (point && *point >= 0xD800 && *point <= 0xDFFF) {
      const auto low = code_unit(in, at);
      if (*point < 0xDC00 && low && *low >= 0xDC00 && *low <= 0xDFFF) {
        at += 6;
        point = 0x10000 + ((*point - 0xD800) << 10) + (*low - 0xDC00);
      } else {
        point.reset();
      }
    }
    if (point && !is_noncharacter(*point))
      return *point;
    throw ParseFailure{
        fmt::format("{} is not a valid Unicode character", in.substr(first, at - first))};
  }

  static std::string text(const std::string& quoted) {
    const std::string_view in(quoted);
    std::string out;
    for (std::size_t at = 1; at + 1 < in.size();) {
      if (in[at] != '\\') {
        const std::size_t length = utf8_length(in.substr(at, in.size() - 1 - at));
        if (length == 0)
          throw ParseFailure{"invalid UTF-8 sequence in string"};
        out += in.substr(at, length);
        at += length;
        continue;
      }
      if (in[at + 1] == 'u') {
        append_utf8(out, escaped(in, at));
        continue;
      }
      constexpr std::string_view kEscapes = "\"'\\/bfnrt";
      const std::size_t which = kEscapes.find(in[at + 1]);
      if (which == std::string_view::npos)
        throw ParseFailure{"invalid escape sequence in string"};
      out += "\"'\\/\b\f\n\r\t"[which];
      at += 2;
    }
    return out;
  }

  const std::vector<Token>* tokens_;
  std::size_t at_ = 0;
};

}  // namespace

void QmpInput::feed(std::string_view bytes) {
  for (const char c : bytes)
    take(c);
}

std::optional<QmpValue> QmpInput::next() {
  if (values_.empty())
    return std::nullopt;
  QmpValue value = std::move(values_.front());
  values_.pop_front();
  return value;
}

QmpInput::Move QmpInput::move(char c) const {
  const auto number = [&](State digits) -> Move {
    return is_digit(c) ? Move{digits, Step::take} : Move{State::start, Step::stray};
  };
  const auto exponent_or_end = [&](State same) -> Move {
    if (is_digit(c))
      return {same, Step::take};
    if (c == 'e' || c == 'E')
      return {State::exponent, Step::take};
    return {State::start, Step::end_before};
  };
  switch (state_) {
    case State::start:
      if (c == ' ' || c == '\t' || c == '\r' || c == '\n')
        return {State::start, Step::stay};
      if (is_structural(c))
        return {State::start, Step::end_after};
      if (c == '"' || c == '\'')
        return {State::text, Step::take};
      if (c >= 'a' && c <= 'z')
        return {State::keyword, Step::take};
      if (c == '-')
        return {State::sign, Step::take};
      if (c == '0')
        return {State::zero, Step::take};
      return number(State::digits);
    case State::keyword:
      return c >= 'a' && c <= 'z' ? Move{State::keyword, Step::take}
                                  : Move{State::start, Step::end_before};
    case State::sign:
      return c == '0' ? Move{State::zero, Step::take} : number(State::digits);
    case State::zero:
      if (is_digit(c))
        return {State::start, Step::stray};
      [[fallthrough]];
    case State::digits:
      return c == '.' ? Move{State::point, Step::take} : exponent_or_end(State::digits);
    case State::point:
      return number(State::fraction);
    case State::fraction:
      return exponent_or_end(State::fraction);
    case State::exponent:
      return c == '+' || c == '-' ? Move{State::exponent_sign, Step::take}
                                  : number(State::exponent_digits);
    case State::exponent_sign:
      return number(State::exponent_digits);
    case State::exponent_digits:
      return is_digit(c) ? Move{State::exponent_digits, Step::take}
                         : Move{State::start, Step::end_before};
    case State::text:
      if (c == quote_)
        return {State::start, Step::end_after};
      if (!is_of_text(c))
        return {State::start, Step::stray};
      return {c == '\\' ? State::escape : State::text, Step::take};
    case State::escape:
      return is_of_text(c) ? Move{State::text, Step::take} : Move{State::start, Step::stray};
    case State::recovery:
      return is_structural(c) || !is_of_text(c) ? Move{State::start, Step::end_before}
                                                : Move{State::recovery, Step::stay};
  }
  return {State::start, Step::stray};
}

void QmpInput::take(char c) {
  const Move next = move(c);
  switch (next.step) {
    case Step::stay:
      break;
    case Step::take:
      if (state_ == State::start)
        quote_ = c;
      token_ += c;
      break;
    case Step::end_after:
      token_ += c;
      end_token();
      break;
    case Step::end_before:
      if (state_ != State::recovery)
        end_token();
      state_ = State::start;
      take(c);
      return;
    case Step::stray:
      token_ += c;
      end_value(stray(std::exchange(token_, {})));
      state_ = State::recovery;
      return;
  }
  state_ = next.state;
  if (token_.size() > kMostBytes) {
    end_value(stray(std::exchange(token_, {})));
    state_ = State::start;
  }
}

/// `state_` is still what the token was read in.
void QmpInput::end_token() {
  Token token{Token::Kind::real, std::exchange(token_, {})};
  if (state_ == State::start)
    token.kind = Token::Kind::punctuation;
  else if (state_ == State::text)
    token.kind = Token::Kind::text;
  else if (state_ == State::keyword)
    token.kind = Token::Kind::keyword;
  else if (state_ == State::zero || state_ == State::digits)
    token.kind = Token::Kind::integer;
  if (token.kind == Token::Kind::punctuation) {
    braces_ += token.text == "{" ? 1 : token.text == "}" ? -1 : 0;
    brackets_ += token.text == "[" ? 1 : token.text == "]" ? -1 : 0;
  }
  if (bytes_ + token.text.size() + 1 > kMostBytes)
    return end_value("JSON token size limit exceeded");
  if (tokens_.size() + 1 > kMostTokens)
    return end_value("JSON token count limit exceeded");
  if (braces_ + brackets_ > static_cast<int>(kDeepest))
    return end_value("JSON nesting depth limit exceeded");
  bytes_ += token.text.size();
  tokens_.push_back(std::move(token));
  if ((braces_ <= 0 && brackets_ <= 0) || braces_ < 0 || brackets_ < 0)
    end_value({});
}

void QmpInput::end_value(std::string error) {
  QmpValue result{nullptr, std::move(error)};
  if (result.error.empty()) {
    try {
      result.value = Parser(tokens_).parse();
    } catch (const ParseFailure& failure) {
      result.error = "JSON parse error, " + failure.what;
    }
  }
  values_.push_back(std::move(result));
  tokens_.clear();
  bytes_ = 0;
  braces_ = brackets_ = 0;
}

}  // namespace nbdelta::sim
