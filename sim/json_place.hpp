#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nbdelta::sim {

/// Of a text that no person has seen: JSON pointers, and the command line's options that the values
/// there, and all below them, are from.
using OptionNames = std::vector<std::pair<std::string_view, std::string_view>>;

/// Where something stands in a text; both count from 1.
struct Place {
  unsigned line = 1;
  unsigned column = 1;  // bytes
};

Place place_at(std::string_view text, std::size_t offset);

/// Where the value that a JSON pointer (RFC 6901) names begins: of a member of an object its key.
/// The text is valid JSON. Where there is no such value, that which would hold it. Of members with
/// the same key it is the last.
Place place_of(std::string_view text, std::string_view pointer);

/// The pointer to the first member whose object has had its key before. The text is valid JSON.
std::optional<std::string> repeated_key(std::string_view text);

/// `key` as a part of a pointer.
std::string pointer_part(std::string_view key);

/// With control characters as JSON escapes them: "\u0000".
std::string printable(std::string_view text);

}  // namespace nbdelta::sim
