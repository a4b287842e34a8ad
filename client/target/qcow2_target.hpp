#pragma once

#include <optional>
#include <string>

#include "client/target/local_target.hpp"
#include "client/target/new_file.hpp"
#include "image/qcow2_overlay.hpp"

namespace nbdelta::client::target {

/// A new qcow2 image: of the whole disk, or of the changes over a backing file.
class Qcow2Target : public LocalTarget {
 public:
  /// Throws TargetRefused where the name is taken or the backing file is not where QEMU would look.
  Qcow2Target(const std::string& path, Existing existing, image::Backing backing);

  const image::ExtentMap& prepare(const Description& description, asio::io_context& loop) override;
  void lay_out(const std::stop_token& stop) override { overlay_->write_tables(stop); }
  void finish() override;
  std::string abandon() noexcept override { return file_.abandon(); }

 protected:
  void write_at(std::span<const std::byte> data, std::uint64_t offset) override;
  bool write_packed_at(std::span<const std::byte> data, const image::ExtentMap::Cursor& first,
                       std::uint64_t offset) override;
  bool copy_at(const File& from, std::uint64_t from_offset, std::uint64_t length,
               std::uint64_t offset) override;
  /// The tables say so already.
  void zero_at(std::uint64_t /*offset*/, std::uint64_t /*length*/) override {}
  void drop_cached() noexcept override { file_.file().drop_cached(); }

 private:
  void check_backing() const;
  void check_chain(std::string base) const;

  std::string path_;
  NewFile file_;
  image::Backing backing_;
  image::ExtentMap widened_;  // to clusters, where those are larger than the map's blocks
  std::optional<image::Qcow2Overlay> overlay_;
};

}  // namespace nbdelta::client::target
