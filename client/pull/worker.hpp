#pragma once

#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include "client/nbd/source.hpp"
#include "client/pull/work.hpp"
#include "client/target/target.hpp"

namespace nbdelta::client::pull {

/// One thread's part of a pull: a connection to the source, a writer into the target, and a number
/// of slots, each of which has a buffer and settles one operation after the other.
///
/// Invariant: an operation that was handed out is settled, or is in its slot, or the pull fails.
class Worker {
 public:
  Worker(nbd::Source& source, target::Target& target, Work& work, Counters& counters,
         unsigned depth);
  ~Worker();

  /// Until all work is handed out and this worker's is settled and flushed. The source is
  /// connected. Throws the first error; ECANCELED where `stop` was the reason.
  void run(const std::stop_token& stop);

 private:
  struct Slot {
    std::span<std::byte> buffer;
    std::optional<Operation> operation;  // not settled yet
  };

  void run_slots();
  asio::awaitable<void> settle_all(Slot& slot);
  asio::awaitable<void> settle_read(Slot& slot);
  asio::awaitable<void> read(std::span<std::byte> out, std::uint64_t offset);
  asio::awaitable<void> read_parts(const Operation& operation, std::span<std::byte> out);
  asio::awaitable<void> write_parts(const Operation& operation, std::span<const std::byte> data,
                                    std::uint64_t data_offset);
  asio::awaitable<void> zero(std::uint64_t offset, std::uint64_t length);
  asio::awaitable<void> throttle(std::uint64_t bytes);

  struct Unmap {
    std::size_t length;
    void operator()(std::byte* memory) const;
  };

  nbd::Source& source_;
  Work& work_;
  Counters& counters_;
  std::unique_ptr<target::Writer> writer_;
  std::unique_ptr<std::byte, Unmap> memory_;
  std::vector<Slot> slots_;
  std::stop_token stop_;
  std::exception_ptr given_up_;  // the first error that no new connection mends
};

}  // namespace nbdelta::client::pull
