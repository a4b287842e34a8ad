#pragma once

#include <cstdint>
#include <string>

namespace nbdelta::testing {

/// Syncs a file and takes it out of the page cache. Returns false where its file system, as tmpfs,
/// keeps it there.
bool drop_from_page_cache(const std::string& path);

/// Bytes of [offset, offset + length) of a file that are in the page cache. `offset` is a multiple
/// of the page size; the range ends within the file.
std::uint64_t cached_bytes(const std::string& path, std::uint64_t offset, std::uint64_t length);
/// Of the whole file; 0 where it is empty.
std::uint64_t cached_bytes(const std::string& path);

}  // namespace nbdelta::testing
