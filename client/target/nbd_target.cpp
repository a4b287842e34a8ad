#include "client/target/nbd_target.hpp"

#include <algorithm>
#include <utility>

#include "client/nbd/run_together.hpp"
#include "client/target/zeros.hpp"

namespace nbdelta::client::target {
namespace {

/// A lost source is connected to again, a lost target is not: what it has of the writes before is
/// not known.
asio::awaitable<void> unless_lost(asio::awaitable<void> operation) {
  try {
    co_await std::move(operation);
  } catch (const nbd::ConnectionLost& lost) {
    fail(lost.error_number(), "the target was lost: {}", lost.what());
  }
}

}  // namespace

class NbdTarget::NbdWriter : public Writer {
 public:
  explicit NbdWriter(std::shared_ptr<nbd::Connection> connection)
      : connection_(std::move(connection)) {}
  ~NbdWriter() override { connection_->disconnect(); }

  asio::awaitable<void> open() override {
    if (!opened_)
      co_await unless_lost(connection_->connect());
    opened_ = true;
  }

  asio::awaitable<void> write(std::span<const std::byte> data, std::uint64_t offset) override {
    while (!data.empty()) {
      const auto part =
          data.first(std::min<std::uint64_t>(data.size(), connection_->negotiated().maximum_block));
      co_await unless_lost(connection_->write(part, offset));
      data = data.subspan(part.size());
      offset += part.size();
    }
  }

  asio::awaitable<void> zero(std::uint64_t offset, std::uint64_t length) override {
    if (connection_->negotiated().can_zero) {
      co_await unless_lost(connection_->zero(offset, length));
      co_return;
    }
    for (const std::uint64_t end = offset + length; offset < end;) {
      const std::span<const std::byte> part = zeros(end - offset);
      co_await write(part, offset);
      offset += part.size();
    }
  }

  asio::awaitable<void> flush() override {
    if (connection_->negotiated().can_flush)
      co_await unless_lost(connection_->flush());
  }

  void cancel() noexcept override { connection_->lose_soon("interrupted"); }
  void is_open() { opened_ = true; }

 private:
  std::shared_ptr<nbd::Connection> connection_;
  bool opened_ = false;
};

NbdTarget::NbdTarget(std::string uri, Changes changes, std::chrono::milliseconds timeout)
    : options_{.uri = std::move(uri), .bitmap_context = {}, .timeout = timeout},
      changes_(changes) {}

const image::ExtentMap& NbdTarget::prepare(const Description& description, asio::io_context& loop) {
  check_changes(options_.uri, description, changes_);
  auto connection = nbd::Connection::make(loop, options_);
  nbd::run_one(loop, connection->connect());
  export_ = connection->negotiated();
  if (export_.read_only)
    refuse(EROFS, "{}: the server does not allow writing", options_.uri);
  if (export_.size < description.disk_size)
    refuse(EINVAL, "{}: has {} bytes, the disk has {}; a larger one is needed", options_.uri,
           export_.size, description.disk_size);
  {
    const std::lock_guard guard(mutex_);
    first_ = std::move(connection);
  }
  started_ = true;
  if (description.map->alignment(export_.minimum_block) >= export_.minimum_block)
    return *description.map;
  map_ = image::widen_to_clusters(*description.map, export_.minimum_block);
  return map_;
}

std::unique_ptr<Writer> NbdTarget::writer(asio::io_context& loop) {
  const std::lock_guard guard(mutex_);
  if (!first_ || &first_->loop() != &loop)
    return std::make_unique<NbdWriter>(nbd::Connection::make(loop, options_));
  auto writer = std::make_unique<NbdWriter>(std::exchange(first_, nullptr));
  writer->is_open();
  return writer;
}

unsigned NbdTarget::maximum_writers() const {
  return export_.multi_conn ? Target::maximum_writers() : 1;
}

std::string NbdTarget::abandon() noexcept {
  if (!started_ || finished_)
    return {};
  return fmt::format(
      "{} is only partly written, and nothing marks it: pull the same changes, or the whole disk, "
      "into it before anything else",
      options_.uri);
}

}  // namespace nbdelta::client::target
