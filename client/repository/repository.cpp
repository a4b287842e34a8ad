#include "client/repository/repository.hpp"

#include <fmt/format.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <string_view>

#include "client/json_text.hpp"

namespace nbdelta::client::repository {
namespace {

constexpr std::string_view kManifest = "/manifest.json";

/// Of "0012-incremental"; nothing for other names.
std::optional<std::uint32_t> number_of(std::string_view name) {
  std::uint32_t number = 0;
  const auto [after, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error != std::errc() || after - name.data() < 4)
    return std::nullopt;
  const std::string_view type = name.substr(static_cast<std::size_t>(after - name.data()));
  if (type != "-full" && type != "-incremental")
    return std::nullopt;
  return number;
}

}  // namespace

std::unique_ptr<backup::Lock> Repository::lock() {
  files_->make_folder(folder_);
  return files_->lock(folder_ + "/nbdelta-lock");
}

std::string Repository::folder_name(std::uint32_t number, std::string_view type) {
  return fmt::format("{:04}-{}", number, type);
}

bool Repository::has_manifest(const std::string& point) const {
  return files_->exists(point_folder(point) + std::string(kManifest));
}

std::optional<Manifest> Repository::latest() const {
  std::optional<std::string> best;
  std::uint32_t highest = 0;
  for (const std::string& name : files_->list(folder_)) {
    const auto number = number_of(name);
    if (number && (!best || *number > highest) && has_manifest(name)) {
      best = name;
      highest = *number;
    }
  }
  if (!best)
    return std::nullopt;
  const std::string path = point_folder(*best) + std::string(kManifest);
  Manifest manifest;
  try {
    from_json_text(files_->read_text(path).value_or(""), manifest, path);
  } catch (const Error& error) {
    fail(error.error_number(),
         "{}; the file is damaged: put it back from a copy of the repository, or move {} away, so "
         "that a full backup is made next",
         error.what(), *best);
  }
  if (manifest.manifest_version != Manifest::kVersion)
    fail(EPROTO, "{}: version {} is not known here", path, manifest.manifest_version);
  return manifest;
}

std::uint32_t Repository::highest_number() const {
  std::uint32_t highest = 0;
  for (const std::string& name : files_->list(folder_))
    highest = std::max(highest, number_of(name).value_or(0));
  return highest;
}

void Repository::publish(const std::string& point, const Manifest& manifest) {
  files_->write_text(point_folder(point) + std::string(kManifest), to_json_text(manifest));
}

void Repository::withdraw(const std::string& point) {
  files_->remove(point_folder(point) + std::string(kManifest));
}

void Repository::remove_unfinished() {
  for (const std::string& name : files_->list(folder_))
    if (number_of(name) && !has_manifest(name))
      files_->remove_folder(point_folder(name));
}

}  // namespace nbdelta::client::repository
