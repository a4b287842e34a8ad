#pragma once

#include <cstdint>
#include <functional>
#include <mutex>

#include "image/disk.hpp"

namespace nbdelta::plugin {

/// Announces the next changed ranges to the kernel while a client reads the ones before: in a
/// changed view the kernel's own readahead would fetch what nobody asks for.
///
/// Clients read in ascending order, a little shuffled by parallel connections; one who starts over
/// or jumps ahead, or back by more than is shuffled, makes the window start anew. All connections
/// of an export share one window.
class Readahead {
 public:
  /// Calls the sink for what lies in [offset, offset + length), until that returns false.
  using Extents = std::function<void(std::uint64_t offset, std::uint64_t length,
                                     const image::ExtentSink& sink)>;

  /// `size`: bytes of data to keep announced ahead of the reader; 0: none.
  explicit Readahead(std::uint64_t size) : size_(size) {}

  /// Call before a read of the disk, of which `extents` says what will be read. Never throws: a
  /// range that cannot be announced is found out when it is read.
  void before_read(const image::Disk& disk, const Extents& extents, std::uint64_t offset,
                   std::uint64_t length) noexcept;

 private:
  void announce_more(const image::Disk& disk, const Extents& extents);

  const std::uint64_t size_;
  std::mutex mutex_;  // guards all below; a reader that finds it taken goes on without
  // The window. What parallel connections shuffle lies in between; `behind_` is where it began, or
  // where a reader was who has read size_ to 2 * size_ bytes since.
  std::uint64_t behind_ = 0;
  std::uint64_t frontier_ = 0;  // what was announced ends here
  std::uint64_t ahead_ = 0;     // announced bytes that were not read yet
  std::uint64_t previous_ = 0;  // becomes behind_
  std::uint64_t since_ = 0;     // bytes read since previous_
  image::Disk::Walk walk_;      // empty before the first announcement
};

}  // namespace nbdelta::plugin
