#pragma once

#include <fcntl.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/big_endian.hpp"
#include "base/file.hpp"

namespace nbdelta::testing {

/// Integers in a file, most significant byte first, as qcow2 has them.
template <class Unsigned>
Unsigned read_number(const std::string& path, std::uint64_t offset) {
  BigEndian<Unsigned> value;
  File::open(path, O_RDONLY).read_exactly_at(std::as_writable_bytes(std::span(&value, 1)), offset);
  return value;
}

template <class Unsigned>
void write_number(const std::string& path, std::uint64_t offset, Unsigned number) {
  const BigEndian<Unsigned> value(number);
  File::open(path, O_WRONLY).write_at(std::as_bytes(std::span(&value, 1)), offset);
}

inline void write_text(const std::string& path, std::uint64_t offset, std::string_view text) {
  File::open(path, O_WRONLY).write_at(std::as_bytes(std::span(text)), offset);
}

inline std::vector<std::byte> read_file(const std::string& path) {
  const File file = File::open(path, O_RDONLY);
  std::vector<std::byte> bytes(file.size());
  file.read_exactly_at(bytes, 0);
  return bytes;
}

/// Makes the file anew.
inline void write_file(const std::string& path, std::span<const std::byte> bytes) {
  File::open(path, O_WRONLY | O_CREAT | O_TRUNC).write_at(bytes, 0);
}

inline void write_file(const std::string& path, std::string_view text) {
  write_file(path, std::as_bytes(std::span(text)));
}

/// Byte offsets of fields in a qcow2 header (qcow2 specification, "Header").
namespace header_field {
inline constexpr std::uint64_t kVersion = 4;
inline constexpr std::uint64_t kBackingOffset = 8;
inline constexpr std::uint64_t kBackingSize = 16;
inline constexpr std::uint64_t kClusterBits = 20;
inline constexpr std::uint64_t kSize = 24;
inline constexpr std::uint64_t kCryptMethod = 32;
inline constexpr std::uint64_t kL1Size = 36;
inline constexpr std::uint64_t kL1Offset = 40;
inline constexpr std::uint64_t kRefcountTableOffset = 48;
inline constexpr std::uint64_t kRefcountTableClusters = 56;
inline constexpr std::uint64_t kSnapshots = 60;
inline constexpr std::uint64_t kSnapshotsOffset = 64;
inline constexpr std::uint64_t kIncompatible = 72;
inline constexpr std::uint64_t kAutoclear = 88;
inline constexpr std::uint64_t kRefcountOrder = 96;
inline constexpr std::uint64_t kHeaderLength = 100;
inline constexpr std::uint64_t kCompressionType = 104;
}  // namespace header_field

}  // namespace nbdelta::testing
