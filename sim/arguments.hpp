#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qapi/fields.hpp"
#include "sim/block_error.hpp"

namespace nbdelta::sim {

/// Fills a structure of qapi/ as QEMU does (qapi/qobject-input-visitor.c): with its words for what
/// is missing, of the wrong type or not known. `path` is what messages call the value. Throws
/// BlockError. Members that the structure does not have are unexpected here, though QEMU may know
/// them.
template <class T>
void read_argument(const qapi::json::value& value, T& out, const std::string& path);

/// Visits the members of one object.
class ArgumentReader {
 public:
  ArgumentReader(const qapi::json::object& in, const std::string& path)
      : in_(&in), prefix_(path.empty() ? std::string() : path + ".") {}

  template <class T>
  void operator()(std::string_view name, T& out) {
    known_.emplace_back(name);
    const qapi::json::value* value = in_->if_contains(name);
    const std::string path = prefix_ + std::string(name);
    if constexpr (qapi::IsOptional<T>::value) {
      if (value != nullptr)
        read_argument(*value, out.emplace(), path);
    } else {
      if (value == nullptr)
        refuse("Parameter '{}' is missing", path);
      read_argument(*value, out, path);
    }
  }

  void refuse_others() const {
    for (const auto& member : *in_)
      if (std::find(known_.begin(), known_.end(), member.key()) == known_.end())
        refuse("Parameter '{}{}' is unexpected", prefix_, std::string_view(member.key()));
  }

 private:
  const qapi::json::object* in_;
  std::string prefix_;
  std::vector<std::string> known_;
};

template <class T>
void read_argument(const qapi::json::value& value, T& out, const std::string& path) {
  const auto expect = [&](bool is, std::string_view what) {
    if (!is)
      refuse("Invalid parameter type for '{}', expected: {}", path, what);
  };
  if constexpr (std::same_as<T, qapi::json::value>) {
    out = value;
  } else if constexpr (std::same_as<T, qapi::json::object>) {
    expect(value.is_object(), "object");
    out = value.get_object();
  } else if constexpr (qapi::Structure<T>) {
    expect(value.is_object(), "object");
    ArgumentReader reader(value.get_object(), path);
    out.fields(reader);
    reader.refuse_others();
  } else if constexpr (qapi::IsVector<T>::value) {
    expect(value.is_array(), "array");
    for (const qapi::json::value& each : value.get_array()) {
      const std::string place = fmt::format("{}[{}]", path, out.size());
      read_argument(each, out.emplace_back(), place);
    }
  } else if constexpr (std::same_as<T, bool>) {
    expect(value.is_bool(), "boolean");
    out = value.get_bool();
  } else if constexpr (std::same_as<T, std::uint64_t>) {
    if (!value.is_int64() && !value.is_uint64())
      refuse("Parameter '{}' expects uint64", path);
    out = value.is_int64() ? static_cast<std::uint64_t>(value.get_int64()) : value.get_uint64();
  } else if constexpr (std::same_as<T, std::uint32_t>) {
    if (!value.is_int64() || !std::in_range<std::uint32_t>(value.get_int64()))
      refuse("Parameter '{}' expects uint32_t", path);
    out = static_cast<std::uint32_t>(value.get_int64());
  } else if constexpr (std::same_as<T, std::int64_t>) {
    expect(value.is_int64(), "integer");
    out = value.get_int64();
  } else {
    static_assert(std::same_as<T, std::string>);
    expect(value.is_string(), "string");
    out = std::string(value.get_string());
  }
}

}  // namespace nbdelta::sim
