#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.hpp"

/// From structures to JSON and back. A structure lists its members once, in a template
///
///     template <class Visitor> void fields(Visitor& visit) { visit("node-name", node_name); … }
///
/// and both ends of the channel use that list. Members that the list does not have are ignored when
/// reading, so that a newer QEMU may send more; std::optional ones may be absent; json::value takes
/// anything.
namespace nbdelta::qapi {

namespace json = boost::json;

class FieldWriter;
class FieldReader;

template <class T>
concept Structure = requires(T structure, FieldWriter& writer) {
  structure.fields(writer);
};

template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};
template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};

template <class T>
json::value to_json(const T& value);
/// `where` is for messages: "query-block: [0].inserted". Throws Error (EPROTO) that says what was
/// expected there.
template <class T>
void from_json(const json::value& value, T& out, const std::string& where);

class FieldWriter {
 public:
  explicit FieldWriter(json::object& out) : out_(out) {}

  template <class T>
  void operator()(std::string_view name, const T& value) {
    if constexpr (IsOptional<T>::value) {
      if (value)
        out_[name] = to_json(*value);
    } else {
      out_[name] = to_json(value);
    }
  }

 private:
  json::object& out_;
};

class FieldReader {
 public:
  FieldReader(const json::object& in, const std::string& where) : in_(in), where_(where) {}

  template <class T>
  void operator()(std::string_view name, T& out) {
    const json::value* value = in_.if_contains(name);
    const std::string path = where_ + "." + std::string(name);
    if constexpr (std::same_as<T, std::optional<json::value>>) {
      if (value != nullptr)
        out = *value;  // null means something here
    } else if constexpr (IsOptional<T>::value) {
      if (value != nullptr && !value->is_null())
        from_json(*value, out.emplace(), path);
    } else {
      if (value == nullptr)
        fail(EPROTO, "{} is missing", path);
      from_json(*value, out, path);
    }
  }

 private:
  const json::object& in_;
  const std::string& where_;
};

template <class T>
json::value to_json(const T& value) {
  if constexpr (Structure<T>) {
    json::object object;
    FieldWriter writer(object);
    const_cast<T&>(value).fields(writer);  // the writer takes each member as const
    return object;
  } else if constexpr (IsVector<T>::value) {
    json::array array;
    for (const auto& each : value)
      array.push_back(to_json(each));
    return array;
  } else {
    return json::value(value);
  }
}

template <class T>
void integer_from_json(const json::value& value, T& out, const std::string& where) {
  json::error_code status;
  out = value.to_number<T>(status);
  if (status || value.is_double())
    fail(EPROTO, "{} is not a number from {} to {}", where, std::numeric_limits<T>::min(),
         std::numeric_limits<T>::max());
}

template <class T>
void from_json(const json::value& value, T& out, const std::string& where) {
  if constexpr (Structure<T>) {
    if (!value.is_object())
      fail(EPROTO, "{} is not an object", where);
    FieldReader reader(value.get_object(), where);
    out.fields(reader);
  } else if constexpr (IsVector<T>::value) {
    if (!value.is_array())
      fail(EPROTO, "{} is not an array", where);
    out.clear();
    for (const json::value& each : value.get_array()) {
      const std::string place = fmt::format("{}[{}]", where, out.size());
      from_json(each, out.emplace_back(), place);
    }
  } else if constexpr (std::same_as<T, bool>) {
    if (!value.is_bool())
      fail(EPROTO, "{} is not true or false", where);
    out = value.get_bool();
  } else if constexpr (std::integral<T>) {
    integer_from_json(value, out, where);
  } else if constexpr (std::same_as<T, std::string>) {
    if (!value.is_string())
      fail(EPROTO, "{} is not a string", where);
    out = std::string(value.get_string());
  } else if constexpr (std::same_as<T, json::object>) {
    if (!value.is_object())
      fail(EPROTO, "{} is not an object", where);
    out = value.get_object();
  } else {
    static_assert(std::same_as<T, json::value>, "a type that JSON messages do not have");
    out = value;
  }
}

}  // namespace nbdelta::qapi
