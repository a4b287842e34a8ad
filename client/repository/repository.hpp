#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "client/backup/environment.hpp"
#include "client/repository/manifest.hpp"

namespace nbdelta::client::repository {

/// The restore points of one guest, in `REPO/VM/NUMBER-TYPE/`. A folder without a manifest is no
/// restore point: the manifest is written last.
class Repository {
 public:
  /// `folder` is REPO/VM; it need not exist yet.
  Repository(backup::Files& files, std::string folder)
      : files_(&files), folder_(std::move(folder)) {}

  const std::string& folder() const { return folder_; }

  /// One writer at a time. Makes the folder where it does not exist.
  std::unique_ptr<backup::Lock> lock();

  /// The restore point with the highest number. Throws Error for a manifest that cannot be read:
  /// what comes after it cannot be known.
  std::optional<Manifest> latest() const;

  /// The highest number that a folder has, with a manifest or without.
  std::uint32_t highest_number() const;

  static std::string folder_name(std::uint32_t number, std::string_view type);
  std::string point_folder(const std::string& name) const { return folder_ + "/" + name; }

  bool has_manifest(const std::string& point) const;
  /// Makes the restore point: what it names is durable already.
  void publish(const std::string& point, const Manifest& manifest);

  /// Takes a restore point back whose bitmaps have not been touched yet; durable afterwards.
  void withdraw(const std::string& point);

  /// Folders without a manifest, which an interrupted backup has left, are removed.
  void remove_unfinished();

 private:
  backup::Files* files_;
  std::string folder_;
};

}  // namespace nbdelta::client::repository
