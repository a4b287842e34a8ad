#include "client/target/null_target.hpp"

namespace nbdelta::client::target {

const image::ExtentMap& NullTarget::prepare(const Description& description,
                                            asio::io_context& /*loop*/) {
  return *description.map;
}

void NullTarget::write_at(std::span<const std::byte> /*data*/, std::uint64_t /*offset*/) {}
void NullTarget::zero_at(std::uint64_t /*offset*/, std::uint64_t /*length*/) {}

}  // namespace nbdelta::client::target
