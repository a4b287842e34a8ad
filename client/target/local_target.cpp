#include "client/target/local_target.hpp"

namespace nbdelta::client::target {

namespace {

constexpr std::uint64_t kWriteBackUnit = 8 * kMiB;

}  // namespace

class LocalTarget::LocalWriter : public Writer {
 public:
  explicit LocalWriter(LocalTarget& target) : target_(target) {}

  asio::awaitable<void> open() override { co_return; }
  asio::awaitable<void> write(std::span<const std::byte> data, std::uint64_t offset) override {
    target_.write_at(data, offset);
    target_.wrote(data.size());
    co_return;
  }
  asio::awaitable<void> write_packed(std::span<const std::byte> data,
                                     image::ExtentMap::Cursor first,
                                     std::uint64_t offset) override {
    if (target_.write_packed_at(data, first, offset))
      target_.wrote(data.size());
    else
      co_await Writer::write_packed(data, first, offset);
  }
  bool copy(const File& from, std::uint64_t from_offset, std::uint64_t length,
            std::uint64_t offset) override {
    if (!target_.copy_at(from, from_offset, length, offset))
      return false;
    target_.wrote(length);
    return true;
  }
  asio::awaitable<void> zero(std::uint64_t offset, std::uint64_t length) override {
    target_.zero_at(offset, length);
    co_return;
  }
  asio::awaitable<void> flush() override { co_return; }  // finish() does, once for all
  void cancel() noexcept override {}

 private:
  LocalTarget& target_;
};

void LocalTarget::wrote(std::uint64_t bytes) noexcept {
  const std::uint64_t before = written_.fetch_add(bytes, std::memory_order_relaxed);
  if (before / kWriteBackUnit == (before + bytes) / kWriteBackUnit)
    return;
  if (dropping_.test_and_set(std::memory_order_acquire))  // another thread waits for the disk
    return;
  drop_cached();
  dropping_.clear(std::memory_order_release);
}

std::unique_ptr<Writer> LocalTarget::writer(asio::io_context& /*loop*/) {
  return std::make_unique<LocalWriter>(*this);
}

}  // namespace nbdelta::client::target
