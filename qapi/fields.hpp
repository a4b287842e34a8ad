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

/// Where in a message a value stands: "query-block[0].inserted". Its text is made only where
/// something is wrong; borrows what it is made of.
class Place {
 public:
  Place(std::string_view root) : name_(root) {}
  Place(const std::string& root) : name_(root) {}
  Place(const char* root) : name_(root) {}
  Place(const Place& parent, std::string_view member) : parent_(&parent), name_(member) {}
  Place(const Place& parent, std::size_t index) : parent_(&parent), index_(index) {}

  std::string text() const {
    if (parent_ == nullptr)
      return std::string(name_);
    return index_ ? fmt::format("{}[{}]", parent_->text(), *index_)
                  : fmt::format("{}.{}", parent_->text(), name_);
  }

 private:
  const Place* parent_ = nullptr;
  std::string_view name_;
  std::optional<std::size_t> index_;
};

template <class T>
json::value to_json(const T& value);
/// Throws Error (EPROTO) that says what was expected where.
template <class T>
void from_json(const json::value& value, T& out, const Place& where);

class FieldWriter {
 public:
  explicit FieldWriter(json::object& out) : out_(out) {}

  template <class T>
  void operator()(std::string_view name, const T& value) {
    if constexpr (IsOptional<T>::value) {
      if (value)
        out_.emplace(name, to_json(*value));
    } else {
      out_.emplace(name, to_json(value));
    }
  }

 private:
  json::object& out_;
};

class FieldReader {
 public:
  FieldReader(const json::object& in, const Place& where) : in_(in), where_(where) {}

  template <class T>
  void operator()(std::string_view name, T& out) {
    const json::value* value = in_.if_contains(name);
    const Place place(where_, name);
    if constexpr (std::same_as<T, std::optional<json::value>>) {
      if (value != nullptr)
        out = *value;  // null means something here
    } else if constexpr (IsOptional<T>::value) {
      if (value != nullptr && !value->is_null())
        from_json(*value, out.emplace(), place);
    } else {
      if (value == nullptr)
        fail(EPROTO, "{} is missing", place.text());
      from_json(*value, out, place);
    }
  }

 private:
  const json::object& in_;
  const Place& where_;
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
void integer_from_json(const json::value& value, T& out, const Place& where) {
  json::error_code status;
  out = value.to_number<T>(status);
  if (status || value.is_double())
    fail(EPROTO, "{} is not a number from {} to {}", where.text(), std::numeric_limits<T>::min(),
         std::numeric_limits<T>::max());
}

template <class T>
void from_json(const json::value& value, T& out, const Place& where) {
  if constexpr (Structure<T>) {
    if (!value.is_object())
      fail(EPROTO, "{} is not an object", where.text());
    FieldReader reader(value.get_object(), where);
    out.fields(reader);
  } else if constexpr (IsVector<T>::value) {
    if (!value.is_array())
      fail(EPROTO, "{} is not an array", where.text());
    out.clear();
    out.reserve(value.get_array().size());
    for (const json::value& each : value.get_array()) {
      const Place place(where, out.size());
      from_json(each, out.emplace_back(), place);
    }
  } else if constexpr (std::same_as<T, bool>) {
    if (!value.is_bool())
      fail(EPROTO, "{} is not true or false", where.text());
    out = value.get_bool();
  } else if constexpr (std::integral<T>) {
    integer_from_json(value, out, where);
  } else if constexpr (std::same_as<T, std::string>) {
    if (!value.is_string())
      fail(EPROTO, "{} is not a string", where.text());
    out = std::string(value.get_string());
  } else if constexpr (std::same_as<T, json::object>) {
    if (!value.is_object())
      fail(EPROTO, "{} is not an object", where.text());
    out = value.get_object();
  } else {
    static_assert(std::same_as<T, json::value>, "a type that JSON messages do not have");
    out = value;
  }
}

}  // namespace nbdelta::qapi
