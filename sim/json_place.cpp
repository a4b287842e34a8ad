#include "sim/json_place.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <set>

namespace nbdelta::sim {
namespace {

/// Walks over valid JSON, and keeps where the pointer's value begins, and the first key that its
/// object has had before. Of equal keys the last one counts, as when it is parsed.
class Walker {
 public:
  Walker(std::string_view text, std::string_view wanted) : text_(text), wanted_(wanted) {}

  std::size_t find() {
    value("");
    return found_;
  }

  std::optional<std::string> find_repeated() {
    value("");
    return repeated_;
  }

 private:
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void blank() { at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size()); }

  void string() {
    for (++at_; at_ < text_.size() && peek() != '"'; ++at_)
      if (peek() == '\\')
        ++at_;
    ++at_;
  }

  /// `pointer` is a part of the wanted one, or leads elsewhere.
  void meet(const std::string& pointer, std::size_t place) {
    if (pointer == wanted_.substr(0, pointer.size()) &&
        (pointer.size() == wanted_.size() || wanted_[pointer.size()] == '/') &&
        pointer.size() >= found_depth_) {
      found_ = place;
      found_depth_ = pointer.size();
    }
  }

  void value(const std::string& pointer) {
    blank();
    if (peek() == '{')
      members(pointer);
    else if (peek() == '[')
      elements(pointer);
    else if (peek() == '"')
      string();
    else
      at_ = std::min(text_.find_first_of(",]} \t\r\n", at_), text_.size());
    blank();
  }

  void members(const std::string& pointer) {
    std::set<std::string> seen;
    do {
      ++at_;  // { or ,
      blank();
      if (peek() != '"')
        break;  // of an empty one
      const std::size_t begin = at_;
      string();
      const auto key = boost::json::parse(std::string(text_.substr(begin, at_ - begin)));
      const std::string inner = pointer + "/" + pointer_part(std::string_view(key.as_string()));
      meet(inner, begin);
      if (!seen.insert(inner).second && !repeated_)
        repeated_ = inner;
      blank();
      ++at_;  // :
      value(inner);
    } while (peek() == ',');
    ++at_;
  }

  void elements(const std::string& pointer) {
    std::size_t index = 0;
    do {
      ++at_;  // [ or ,
      blank();
      if (peek() == ']')
        break;
      const std::string inner = pointer + "/" + std::to_string(index++);
      meet(inner, at_);
      value(inner);
    } while (peek() == ',');
    ++at_;
  }

  std::string_view text_;
  std::string_view wanted_;
  std::size_t at_ = 0;
  std::size_t found_ = 0;
  std::size_t found_depth_ = 0;
  std::optional<std::string> repeated_;
};

}  // namespace

Place place_at(std::string_view text, std::size_t offset) {
  const std::string_view before = text.substr(0, offset);
  const auto lines = std::count(before.begin(), before.end(), '\n');
  const std::size_t line_begin = before.rfind('\n') + 1;  // npos + 1 is 0
  return {static_cast<unsigned>(lines) + 1, static_cast<unsigned>(before.size() - line_begin) + 1};
}

Place place_of(std::string_view text, std::string_view pointer) {
  return place_at(text, Walker(text, pointer).find());
}

std::optional<std::string> repeated_key(std::string_view text) {
  return Walker(text, "").find_repeated();
}

std::string pointer_part(std::string_view key) {
  std::string part;
  for (const char c : key) {
    if (c == '~')
      part += "~0";
    else if (c == '/')
      part += "~1";
    else
      part += c;
  }
  return part;
}

std::string printable(std::string_view text) {
  std::string shown;
  for (const char c : text)
    if (const auto byte = static_cast<unsigned char>(c); byte < 0x20 || byte == 0x7F)
      shown += fmt::format("\\u{:04x}", byte);
    else
      shown += c;
  return shown;
}

}  // namespace nbdelta::sim
