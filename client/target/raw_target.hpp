#pragma once

#include "client/target/local_target.hpp"
#include "client/target/new_file.hpp"

namespace nbdelta::client::target {

/// A new raw image of the whole disk; what reads zero stays a hole.
class RawTarget : public LocalTarget {
 public:
  RawTarget(const std::string& path, Existing existing);

  const image::ExtentMap& prepare(const Description& description, asio::io_context& loop) override;
  void finish() override;
  std::string abandon() noexcept override { return file_.abandon(); }

 protected:
  void write_at(std::span<const std::byte> data, std::uint64_t offset) override;
  bool copy_at(const File& from, std::uint64_t from_offset, std::uint64_t length,
               std::uint64_t offset) override;
  void zero_at(std::uint64_t /*offset*/, std::uint64_t /*length*/) override {}
  void drop_cached() noexcept override { file_.file().drop_cached(); }

 private:
  std::string path_;
  NewFile file_;
};

}  // namespace nbdelta::client::target
