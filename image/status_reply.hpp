#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "image/extent.hpp"

namespace nbdelta::image {

/// One entry of a block status reply: `length` bytes with `flags`, meaning as the context says.
struct StatusEntry {
  std::uint64_t length = 0;
  std::uint64_t flags = 0;
};

/// The two kinds of metadata context that describe changes (NBD protocol, "Metadata querying";
/// QEMU docs/interop/nbd.rst, "qemu:dirty-bitmap").
inline constexpr std::string_view kBaseAllocation = "base:allocation";
inline constexpr std::string_view kDirtyBitmapPrefix = "qemu:dirty-bitmap:";

/// Entries of one reply, in one context: nbdkit sends at most 2^20 and one more for the rest;
/// nobody sends more.
inline constexpr std::size_t kMostStatusEntries = (std::size_t{1} << 20) + 1;

/// Checks what a server answered for [offset, offset + count) in one context, and cuts what lies
/// past its end (the protocol lets the last extent be longer). An empty reply, an empty extent, or
/// more than kMostStatusEntries are an Error (EPROTO) that names `source`. A reply that ends early
/// is allowed; it covers at least one byte. Returns the bytes covered.
std::uint64_t check_status_reply(std::vector<StatusEntry>& entries, std::uint64_t offset,
                                 std::uint64_t count, std::string_view source);

/// Joins the answers of a dirty bitmap and of base:allocation for the same offset, which may be cut
/// at different places, into extents of a changed view, up to where both say something.
/// `allocation` may be empty: then nothing is known to read zero. Returns the bytes covered.
std::uint64_t merge_dirty_and_allocation(std::span<const StatusEntry> dirty,
                                         std::span<const StatusEntry> allocation,
                                         std::uint64_t offset, const ExtentSink& sink);

/// base:allocation flags as a State. Unknown flags are ignored, as the protocol asks.
State state_from_allocation_flags(std::uint64_t flags);

}  // namespace nbdelta::image
