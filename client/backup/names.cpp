#include "client/backup/names.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace nbdelta::client::backup {
namespace {

constexpr std::size_t kChainDigits = 8;

bool is_hex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

bool is_safe(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == '-';
}

}  // namespace

std::string bitmap_name(const SessionId& id) {
  return fmt::format("{}{}-{:04}", kPrefix, id.chain, id.number);
}

std::string overlay_node_name(const SessionId& id, std::size_t disk) {
  return fmt::format("{}-{}", bitmap_name(id), disk);
}

std::string file_node_name(const SessionId& id, std::size_t disk) {
  return overlay_node_name(id, disk) + "-f";
}

std::string overlay_file_name(const SessionId& id, std::string_view disk_name) {
  return fmt::format("{}-{}.qcow2", bitmap_name(id), file_safe(disk_name));
}

std::string active_job_name(const SessionId& id, std::size_t index) {
  return overlay_node_name(id, index) + "-a";
}

std::string lower_job_name(const SessionId& id, std::size_t index) {
  return overlay_node_name(id, index) + "-b";
}

std::string stop_node_name(const SessionId& id) {
  return bitmap_name(id) + "-s";
}

std::optional<SessionId> session_of(std::string_view name) {
  if (!name.starts_with(kPrefix))
    return std::nullopt;
  name.remove_prefix(kPrefix.size());
  if (name.size() <= kChainDigits || name[kChainDigits] != '-' ||
      !std::all_of(name.begin(), name.begin() + kChainDigits, is_hex))
    return std::nullopt;
  SessionId id{.chain = std::string(name.substr(0, kChainDigits)), .number = 0};
  const char* begin = name.data() + kChainDigits + 1;
  const char* end = name.data() + name.size();
  const auto [after, error] = std::from_chars(begin, end, id.number);
  if (error != std::errc() || (after != end && *after != '-'))
    return std::nullopt;
  return id;
}

std::string chain_name(std::uint64_t random) {
  return fmt::format("{:08x}", static_cast<std::uint32_t>(random));
}

std::string file_safe(std::string_view name) {
  std::string safe(name);
  std::replace_if(
      safe.begin(), safe.end(), [](char c) { return !is_safe(c); }, '_');
  if (safe.empty() || safe.front() == '.' || safe.front() == '-')
    safe.insert(safe.begin(), '_');
  return safe;
}

std::string_view base_name(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

std::string folder_of(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string_view::npos)
    return ".";
  return std::string(path.substr(0, std::max<std::size_t>(slash, 1)));
}

}  // namespace nbdelta::client::backup
