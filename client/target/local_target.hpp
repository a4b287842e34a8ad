#pragma once

#include <atomic>
#include <cstdint>

#include "client/target/target.hpp"

namespace nbdelta::client::target {

/// A target that is written to by system calls, in the thread that has the data: that is still in
/// this processor's cache.
///
/// What was written leaves the page cache soon: nobody will read it, the disk has work from the
/// beginning, and reused pages are cheaper than fresh ones (bench/README.md).
class LocalTarget : public Target {
 public:
  std::unique_ptr<Writer> writer(asio::io_context& loop) final;

 protected:
  /// All are safe to call from several threads.
  virtual void write_at(std::span<const std::byte> data, std::uint64_t offset) = 0;
  /// As Writer::write_packed(); returns false where a target knows nothing better than write_at().
  virtual bool write_packed_at(std::span<const std::byte> /*data*/,
                               const image::ExtentMap::Cursor& /*first*/,
                               std::uint64_t /*offset*/) {
    return false;
  }
  virtual bool copy_at(const File& /*from*/, std::uint64_t /*from_offset*/,
                       std::uint64_t /*length*/, std::uint64_t /*offset*/) {
    return false;
  }
  virtual void zero_at(std::uint64_t offset, std::uint64_t length) = 0;
  /// Called after each so many bytes, by one thread at a time; File::drop_cached() of the target's
  /// file.
  virtual void drop_cached() noexcept {}

  /// Counts what goes into the page cache; the writers do for what they hand on themselves.
  void wrote(std::uint64_t bytes) noexcept;

 private:
  class LocalWriter;

  std::atomic<std::uint64_t> written_ = 0;  // bytes
  std::atomic_flag dropping_;               // one thread is in drop_cached()
};

}  // namespace nbdelta::client::target
