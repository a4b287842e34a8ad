#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <stop_token>
#include <string>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "client/asio.hpp"
#include "image/extent_map.hpp"

namespace nbdelta::client::target {

/// The target will not do, or not without another option; nothing was written.
class TargetRefused : public Error {
 public:
  using Error::Error;
};

template <class... Args>
[[noreturn]] void refuse(int error_number, fmt::format_string<Args...> format, Args&&... args) {
  throw TargetRefused(error_number, fmt::format(format, std::forward<Args>(args)...));
}

/// Runs something that changes nothing that was there: its Error becomes a refusal.
template <class Body>
auto or_refuse(Body body) {
  try {
    return body();
  } catch (const Error& error) {
    throw TargetRefused(error.error_number(), error.what());
  }
}

/// What a map describes.
enum class Contents : std::uint8_t {
  whole_disk,  // data, zero, hole
  changes,     // data, zero, unchanged
};

/// Whether a source that tells only what has changed may be written over what is there.
enum class Changes : std::uint8_t { refuse, apply };

/// What is to be pulled.
struct Description {
  std::string source;  // its URI; of changes also the state that they lead to
  std::uint64_t disk_size = 0;
  Contents contents = Contents::whole_disk;
  const image::ExtentMap* map = nullptr;
  const File* copied_from = nullptr;  // by Writer::copy(), the first of the data at least
};

/// Throws TargetRefused where the description is of changes, which would leave a target that is
/// written in place without the rest of the disk.
void check_changes(const std::string& target, const Description& description, Changes changes);

/// One connection's way into the target; used by its loop's thread only, but for several writes at
/// a time, to ranges that do not overlap.
class Writer {
 public:
  Writer() = default;
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  virtual ~Writer() = default;

  /// Before all else.
  virtual asio::awaitable<void> open() = 0;
  /// Bytes whose state is data.
  virtual asio::awaitable<void> write(std::span<const std::byte> data, std::uint64_t offset) = 0;
  /// The bytes in state data from `offset` on, without what lies between; `first` is the run that
  /// holds `offset`, of the map that prepare() returned.
  virtual asio::awaitable<void> write_packed(std::span<const std::byte> data,
                                             image::ExtentMap::Cursor first, std::uint64_t offset);
  /// As write(), where the bytes stand in a file: by the kernel. Returns false where that is not to
  /// be had; they are to be written then.
  virtual bool copy(const File& /*from*/, std::uint64_t /*from_offset*/, std::uint64_t /*length*/,
                    std::uint64_t /*offset*/) {
    return false;
  }
  /// A range that reads zero.
  virtual asio::awaitable<void> zero(std::uint64_t offset, std::uint64_t length) = 0;
  /// After this writer's last write.
  virtual asio::awaitable<void> flush() = 0;
  /// Makes what is in flight fail soon.
  virtual void cancel() noexcept = 0;
};

/// Where a pull goes to. prepare(), then writers, then finish(); or abandon() at any point.
class Target {
 public:
  Target() = default;
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;
  virtual ~Target() = default;

  /// Refuses what does not fit (TargetRefused), lays the target out, and returns the map to follow:
  /// the description's, or one that covers it in larger blocks (the target's own; lives as long).
  /// `loop` is the one of the first writer. The description outlives the target's use.
  virtual const image::ExtentMap& prepare(const Description& description,
                                          asio::io_context& loop) = 0;

  /// What else there is to lay out, if anything: called once after prepare(), before the writers
  /// write, with whom it would spin for a file's lock. Fails soon after `stop` was requested.
  virtual void lay_out(const std::stop_token& /*stop*/) {}

  /// Safe to call from several threads, once for each loop.
  virtual std::unique_ptr<Writer> writer(asio::io_context& loop) = 0;

  /// Writers that may be used at the same time.
  virtual unsigned maximum_writers() const { return std::numeric_limits<unsigned>::max(); }
  /// Bytes that one Writer::zero() is given at most.
  virtual std::uint64_t zero_size() const { return kGiB; }

  /// All writers have flushed: makes the target durable and gives it its name.
  virtual void finish() = 0;

  /// Removes or marks what is unfinished; returns what was done, for people ("" where nothing was
  /// to be done). May be called from another thread than the one that is in finish(), which then
  /// fails if it has not yet given the name.
  virtual std::string abandon() noexcept = 0;
};

}  // namespace nbdelta::client::target
