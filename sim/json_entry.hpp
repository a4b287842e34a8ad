#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json/value.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "sim/json_place.hpp"
#include "sim/quantity.hpp"

namespace nbdelta::sim {

namespace json = boost::json;

/// A JSON text, for messages that say the place: one that a person wrote, or what was made of
/// options.
struct JsonSource {
  std::string_view text;
  const std::string& file;
  const OptionNames& options;

  template <class... Args>
  [[noreturn]] void refuse(const std::string& pointer, fmt::format_string<Args...> format,
                           Args&&... args) const {
    for (const auto& [part, option] : options)
      if (pointer == part || pointer.starts_with(fmt::format("{}/", part)))
        fail(EINVAL, "{}: {}", option, printable(fmt::format(format, std::forward<Args>(args)...)));
    const Place place = place_of(text, pointer);
    fail(EINVAL, "{}:{}:{}: {}: {}", file, place.line, place.column,
         pointer.empty() ? "/" : printable(pointer),
         printable(fmt::format(format, std::forward<Args>(args)...)));
  }
};

/// One value of it. All functions throw Error (EINVAL): "FILE:LINE:COLUMN: POINTER: what is wrong,
/// and what is allowed". Borrows the source and the value.
class JsonEntry {
 public:
  JsonEntry(const JsonSource& source, const json::value& value, std::string pointer)
      : source_(&source), value_(&value), pointer_(std::move(pointer)) {}

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    source_->refuse(pointer_, format, std::forward<Args>(args)...);
  }

  const json::object& object() const {
    if (!value_->is_object())
      refuse("expected an object {{…}}");
    return value_->get_object();
  }
  JsonEntry member(const std::string& key) const {
    return {*source_, object().at(key), pointer_ + "/" + pointer_part(key)};
  }
  std::vector<JsonEntry> elements() const {
    if (!value_->is_array())
      refuse("expected a list […]");
    std::vector<JsonEntry> entries;
    for (const json::value& each : value_->get_array())
      entries.emplace_back(*source_, each, fmt::format("{}/{}", pointer_, entries.size()));
    return entries;
  }
  /// All keys are known, and those that must be there are.
  void check_keys(const std::vector<std::string_view>& known,
                  const std::vector<std::string_view>& needed = {}) const {
    for (const auto& member : object())
      if (std::find(known.begin(), known.end(), std::string_view(member.key())) == known.end())
        source_->refuse(pointer_ + "/" + pointer_part(std::string_view(member.key())),
                        "unknown key; there may be: {}", fmt::join(known, ", "));
    for (const std::string_view key : needed)
      if (!object().contains(key))
        refuse("\"{}\" is missing", key);
  }

  void get(std::string& out) const {
    if (!value_->is_string())
      refuse("expected a text \"…\"");
    out = std::string(value_->get_string());
  }
  void get(bool& out) const {
    if (!value_->is_bool())
      refuse("expected true or false");
    out = value_->get_bool();
  }
  void get_count(std::uint64_t& out, std::uint64_t low, std::uint64_t high) const {
    const bool natural = value_->is_uint64() || (value_->is_int64() && value_->get_int64() >= 0);
    if (!natural || value_->to_number<std::uint64_t>() < low ||
        value_->to_number<std::uint64_t>() > high)
      refuse("expected a whole number from {} to {}", low, high);
    out = value_->to_number<std::uint64_t>();
  }
  void get_number(double& out, double low, double high) const {
    if (!value_->is_number() || value_->to_number<double>() < low ||
        value_->to_number<double>() > high)
      refuse("expected a number from {} to {}", low, high);
    out = value_->to_number<double>();
  }
  void get_bytes(std::uint64_t& out, std::string_view low, std::string_view high) const {
    get_quantity(out, Quantity::size, &parse_bytes, low, high);
  }
  void get_rate(std::uint64_t& out, std::string_view low, std::string_view high) const {
    get_quantity(out, Quantity::rate, &parse_bytes_per_second, low, high);
  }
  void get_time(Clock::Duration& out, std::string_view low, std::string_view high) const {
    get_quantity(out, Quantity::time, &parse_time, low, high);
  }
  void get_choice(std::string& out, const std::vector<std::string_view>& choices) const {
    if (!value_->is_string() || std::find(choices.begin(), choices.end(),
                                          std::string_view(value_->get_string())) == choices.end())
      refuse("expected one of: \"{}\"", fmt::join(choices, "\", \""));
    out = std::string(value_->get_string());
  }

 private:
  template <class T>
  void get_quantity(T& out, Quantity quantity, T (*parse)(std::string_view), std::string_view low,
                    std::string_view high) const {
    if (!value_->is_string())
      refuse("expected a quantity with its unit, as in \"{}\"", high);
    const std::string text = printable(value_->get_string());  // a 0 would end what an Error says
    double number = 0;
    try {
      number = parse_quantity(quantity, text);
    } catch (const Error& error) {
      refuse("{}", error.what());
    }
    if (number < parse_quantity(quantity, low) || number > parse_quantity(quantity, high))
      refuse("'{}' is out of range: {} to {}", text, low, high);
    out = parse(text);
  }

  const JsonSource* source_;
  const json::value* value_;
  std::string pointer_;
};

/// Calls `read` with the member where there is one.
template <class Read>
void optional(const JsonEntry& entry, const char* key, Read read) {
  if (entry.object().contains(key))
    read(entry.member(key));
}

}  // namespace nbdelta::sim
