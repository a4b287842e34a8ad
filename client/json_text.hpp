#pragma once

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "qapi/fields.hpp"

namespace nbdelta::client {

/// Indented, for files and output that people read too; ends with a line end.
std::string pretty(const boost::json::value& value);

/// Whether JSON can hold it as it is: whether it is UTF-8.
bool is_json_text(std::string_view text);

template <class T>
std::string to_json_text(const T& structure) {
  return pretty(qapi::to_json(structure));
}

/// Throws Error (EPROTO) that says what in `where` is not as it should be.
template <class T>
void from_json_text(const std::string& text, T& structure, const std::string& where) {
  boost::json::error_code status;
  const boost::json::value value = boost::json::parse(text, status);
  if (status)
    fail(EPROTO, "{}: is not JSON: {}", where, status.message());
  qapi::from_json(value, structure, where);
}

}  // namespace nbdelta::client
