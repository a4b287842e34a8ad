#include "client/target/target.hpp"

#include <algorithm>
#include <cerrno>

namespace nbdelta::client::target {

void check_changes(const std::string& target, const Description& description, Changes changes) {
  if (description.contents == Contents::changes && changes == Changes::refuse)
    refuse(
        EINVAL,
        "{}: the source tells only what has changed; --apply writes that over the previous state, "
        "--full takes the whole disk",
        target);
}

asio::awaitable<void> Writer::write_packed(std::span<const std::byte> data,
                                           image::ExtentMap::Cursor run, std::uint64_t offset) {
  for (; !data.empty(); run.next()) {
    if (run.extent().state != image::State::data)
      continue;
    const std::uint64_t from = std::max(offset, run.extent().offset);
    const auto part = data.first(std::min<std::uint64_t>(data.size(), run.extent().end() - from));
    co_await write(part, from);
    data = data.subspan(part.size());
  }
}

}  // namespace nbdelta::client::target
