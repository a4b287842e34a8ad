#include "client/target/raw_target.hpp"

namespace nbdelta::client::target {

RawTarget::RawTarget(const std::string& path, Existing existing)
    : path_(path), file_(path, existing) {
  file_.check_name();
}

const image::ExtentMap& RawTarget::prepare(const Description& description,
                                           asio::io_context& /*loop*/) {
  if (description.contents == Contents::changes)
    refuse(EINVAL,
           "{}: the source tells only what has changed, and a new raw image cannot say what it "
           "lacks; use --apply on the previous full image, a target that ends in .qcow2, or --full",
           path_);
  file_.create();
  file_.check_space(description.map->bytes(image::State::data), description.copied_from);
  file_.file().resize(description.disk_size);
  return *description.map;
}

void RawTarget::write_at(std::span<const std::byte> data, std::uint64_t offset) {
  file_.file().write_at(data, offset);
}

bool RawTarget::copy_at(const File& from, std::uint64_t from_offset, std::uint64_t length,
                        std::uint64_t offset) {
  return file_.file().copy_from(from, from_offset, length, offset);
}

void RawTarget::finish() {
  file_.file().sync();
  drop_cached();
  file_.publish();
}

}  // namespace nbdelta::client::target
