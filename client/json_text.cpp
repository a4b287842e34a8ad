#include "client/json_text.hpp"

#include "base/utf8.hpp"

namespace nbdelta::client {
namespace {

namespace json = boost::json;

void append(const json::value& value, std::string& out, std::size_t indent) {
  const std::string inner(indent + 2, ' ');
  const auto open_and_close = [&](char open, char close, bool empty, const auto& members) {
    out += open;
    if (!empty) {
      members();
      out += '\n';
      out.append(indent, ' ');
    }
    out += close;
  };
  if (const auto* object = value.if_object()) {
    open_and_close('{', '}', object->empty(), [&] {
      const char* separator = "\n";
      for (const auto& [key, member] : *object) {
        out += separator + inner + json::serialize(json::value(as_utf8(key))) + ": ";
        append(member, out, indent + 2);
        separator = ",\n";
      }
    });
  } else if (const auto* array = value.if_array()) {
    open_and_close('[', ']', array->empty(), [&] {
      const char* separator = "\n";
      for (const json::value& member : *array) {
        out += separator + inner;
        append(member, out, indent + 2);
        separator = ",\n";
      }
    });
  } else {
    // A byte that is none of UTF-8's would make all of it unreadable.
    const auto* text = value.if_string();
    out += json::serialize(text == nullptr ? value : json::value(as_utf8(*text)));
  }
}

}  // namespace

std::string pretty(const json::value& value) {
  std::string out;
  append(value, out, 0);
  out += '\n';
  return out;
}

bool is_json_text(std::string_view text) {
  boost::json::error_code status;
  boost::json::parse(json::serialize(json::value(text)), status);
  return !status;
}

}  // namespace nbdelta::client
