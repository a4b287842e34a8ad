#include "tests/sim/transcript.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <regex>
#include <set>
#include <utility>

#include "qapi/block_nodes.hpp"
#include "qapi/export_commands.hpp"
#include "qapi/job_commands.hpp"

namespace nbdelta::testing {
namespace {

namespace json = boost::json;

template <class Query>
json::value members_read(const json::value& value) {
  return qapi::to_json(qapi::result_from<Query>(value));
}

void trim_image(json::object& image) {
  image.erase("actual-size");
  if (auto* below = image.if_contains("backing-image")) {
    qapi::ImageInfo info;
    qapi::from_json(*below, info, "backing-image");
    *below = qapi::to_json(info);
    trim_image(below->as_object());
  }
  if (auto* specific = image.if_contains("format-specific")) {
    json::object kept;  // of which "compat" is read
    const json::object& data = specific->at("data").as_object();
    if (const auto* compat = data.if_contains("compat"))
      kept["compat"] = *compat;
    if (specific->at("type") == "qcow2")
      *specific = json::object{{"data", std::move(kept)}};
    else
      image.erase("format-specific");
  }
}

void trim_node(json::object& node) {
  json::object& image = node.at("image").as_object();
  trim_image(image);
  if (node.at("drv") == "file")
    image.erase("virtual-size");
  if (auto* bitmaps = node.if_contains("dirty-bitmaps")) {
    json::array named;
    for (const json::value& bitmap : bitmaps->as_array())
      if (bitmap.as_object().contains("name"))
        named.push_back(bitmap);
    if (named.empty())
      node.erase("dirty-bitmaps");
    else
      *bitmaps = std::move(named);
  }
}

json::value answer_read(const std::string& command, const json::value& value) {
  if (command == qapi::QueryBlock::kName) {
    json::value devices = members_read<qapi::QueryBlock>(value);
    for (json::value& device : devices.as_array())
      if (auto* inserted = device.as_object().if_contains("inserted"))
        trim_node(inserted->as_object());
    return devices;
  }
  if (command == qapi::QueryNamedBlockNodes::kName) {
    json::array nodes;
    const json::value read = members_read<qapi::QueryNamedBlockNodes>(value);
    for (json::value node : read.as_array()) {
      if (node.at("drv") == "commit_top" || node.at("drv") == "mirror_top")
        continue;
      trim_node(node.as_object());
      nodes.push_back(std::move(node));
    }
    return nodes;
  }
  if (command == qapi::QueryJobs::kName)
    return members_read<qapi::QueryJobs>(value);
  if (command == qapi::QueryStatus::kName)
    return members_read<qapi::QueryStatus>(value);
  if (command == qapi::QueryMigrate::kName)
    return members_read<qapi::QueryMigrate>(value);
  if (command == qapi::QueryBlockExports::kName)
    return members_read<qapi::QueryBlockExports>(value);
  return value;
}

/// Members in the order of their names.
void write_sorted(const json::value& value, std::string& out) {
  if (const json::object* object = value.if_object()) {
    std::set<std::string> keys;
    for (const auto& member : *object)
      keys.insert(std::string(member.key()));
    out += '{';
    for (const std::string& key : keys) {
      out += fmt::format("{}{}: ", out.ends_with('{') ? "" : ", ", key);
      write_sorted(object->at(key), out);
    }
    out += '}';
  } else if (const json::array* array = value.if_array()) {
    out += '[';
    for (std::size_t i = 0; i < array->size(); ++i) {
      out += i == 0 ? "" : ", ";
      write_sorted((*array)[i], out);
    }
    out += ']';
  } else {
    out += json::serialize(value);
  }
}

}  // namespace

std::string Transcript::tidy(std::string text) {
  for (std::size_t at = 0; (at = text.find(folder_ + "/", at)) != std::string::npos;)
    text.replace(at, folder_.size(), "$DIR");
  static const std::regex made_up("#block[0-9]+f?");
  std::string tidied;
  auto last = text.cbegin();
  for (std::sregex_iterator it(text.cbegin(), text.cend(), made_up), end; it != end; ++it) {
    tidied.append(last, (*it)[0].first);
    auto [name, added] = names_.try_emplace(it->str(), "");
    if (added)
      name->second = fmt::format("#{}", names_.size());
    tidied += name->second;
    last = (*it)[0].second;
  }
  tidied.append(last, text.cend());
  return tidied;
}

void Transcript::note(const std::string& line) {
  lines_.push_back(tidy(line));
}

void Transcript::message(const std::string& command, const json::object& message) {
  if (is_rest_of_job(message))
    return;
  json::object kept = message;
  kept.erase("timestamp");
  if (auto* answer = kept.if_contains("return")) {
    // one line each: what differs is found soon
    const json::value read = answer_read(command, *answer);
    const json::array* all = read.if_array();
    if (all != nullptr && !all->empty()) {
      note("<");
      for (const json::value& each : *all) {
        std::string line = "    ";
        write_sorted(each, line);
        note(line);
      }
      return;
    }
    *answer = read;
    if (json::object* object = answer->if_object())
      object->erase("singlestep");  // of query-status before QEMU 8
  }
  if (auto* data = kept.if_contains("data"))
    data->as_object().erase("amount-exceeded");
  if (kept.contains("QMP"))
    kept["QMP"].as_object().erase("version");
  std::string line = kept.contains("event") ? "! " : "< ";
  write_sorted(kept, line);
  note(line);
}

bool Transcript::is_rest_of_job(const json::object& message) {
  const json::value* event = message.if_contains("event");
  if (event == nullptr || event->as_string() != qapi::JobStatusChange::kName)
    return false;
  const std::string id(message.at("data").at("id").as_string());
  const std::string status(message.at("data").at("status").as_string());
  return status == "standby" || status == "paused" ||
         std::exchange(job_status_[id], status) == status;
}

std::string difference(const std::vector<std::string>& real, const std::vector<std::string>& fake) {
  constexpr std::size_t kBefore = 6;
  constexpr std::size_t kAfter = 4;
  const auto [at, other] = std::mismatch(real.begin(), real.end(), fake.begin(), fake.end());
  if (at == real.end() && other == fake.end())
    return {};
  const auto first = static_cast<std::size_t>(at - real.begin());
  std::string shown;
  for (std::size_t i = first - std::min(first, kBefore); i < first; ++i)
    shown += fmt::format("         {}\n", real[i]);
  for (std::size_t i = first; i < std::min(real.size(), first + kAfter); ++i)
    shown += fmt::format("  real:  {}\n", real[i]);
  for (std::size_t i = first; i < std::min(fake.size(), first + kAfter); ++i)
    shown += fmt::format("  fake:  {}\n", fake[i]);
  return shown;
}

}  // namespace nbdelta::testing
