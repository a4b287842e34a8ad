#pragma once

#include <cstdint>
#include <mutex>

#include "image/view.hpp"

namespace nbdelta::plugin {

/// Announces the next changed ranges to the kernel while a client reads the ones before: in a
/// changed view the kernel's own readahead would fetch what nobody asks for.
///
/// Clients read in ascending order, a little shuffled by parallel connections; one who starts over
/// or jumps ahead makes the window start anew. All connections of an export share one window.
class Readahead {
 public:
  /// `size`: bytes of data to keep announced ahead of the reader; 0: none.
  explicit Readahead(std::uint64_t size) : size_(size) {}

  /// Call before a read. Never throws: a range that cannot be announced is found out when it is
  /// read.
  void before_read(const image::View& view, std::uint64_t offset, std::uint64_t length) noexcept;

 private:
  void announce_more(const image::View& view);

  const std::uint64_t size_;
  std::mutex mutex_;            // guards all below; a reader that finds it taken goes on without
  std::uint64_t start_ = 0;     // the window: what was announced begins here
  std::uint64_t frontier_ = 0;  // and ends here
  std::uint64_t ahead_ = 0;     // announced bytes that were not read yet
};

}  // namespace nbdelta::plugin
