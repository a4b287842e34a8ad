#pragma once

#include "client/target/local_target.hpp"

namespace nbdelta::client::target {

/// `null:` takes everything and keeps nothing: for measuring a source.
class NullTarget : public LocalTarget {
 public:
  const image::ExtentMap& prepare(const Description& description, asio::io_context& loop) override;
  void finish() override {}
  std::string abandon() noexcept override { return {}; }

 protected:
  void write_at(std::span<const std::byte> data, std::uint64_t offset) override;
  void zero_at(std::uint64_t offset, std::uint64_t length) override;
};

}  // namespace nbdelta::client::target
