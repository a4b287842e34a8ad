#include "client/target/local_target.hpp"

namespace nbdelta::client::target {

class LocalTarget::LocalWriter : public Writer {
 public:
  explicit LocalWriter(LocalTarget& target) : target_(target) {}

  asio::awaitable<void> open() override { co_return; }
  asio::awaitable<void> write(std::span<const std::byte> data, std::uint64_t offset) override {
    target_.write_at(data, offset);
    co_return;
  }
  asio::awaitable<void> write_packed(std::span<const std::byte> data,
                                     image::ExtentMap::Cursor first,
                                     std::uint64_t offset) override {
    if (!target_.write_packed_at(data, first, offset))
      co_await Writer::write_packed(data, first, offset);
  }
  bool copy(const File& from, std::uint64_t from_offset, std::uint64_t length,
            std::uint64_t offset) override {
    return target_.copy_at(from, from_offset, length, offset);
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

std::unique_ptr<Writer> LocalTarget::writer(asio::io_context& /*loop*/) {
  return std::make_unique<LocalWriter>(*this);
}

}  // namespace nbdelta::client::target
