#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/big_endian.hpp"

/// What goes over the wire (NBD protocol, doc/proto.md), as far as a server of exports with dirty
/// bitmaps needs it.
namespace nbdelta::sim::nbd {

inline constexpr std::uint64_t kMagic = 0x4e42444d41474943;  // "NBDMAGIC"
inline constexpr std::uint64_t kOptionMagic = 0x49484156454f5054;
inline constexpr std::uint64_t kOptionReplyMagic = 0x3e889045565a9;
inline constexpr std::uint32_t kRequestMagic = 0x25609513;
inline constexpr std::uint32_t kReplyMagic = 0x67446698;
inline constexpr std::uint32_t kChunkMagic = 0x668e33ef;

inline constexpr std::uint16_t kFixedNewstyle = 1;
inline constexpr std::uint16_t kNoZeroes = 2;

enum class Option : std::uint32_t {
  export_name = 1,
  abort = 2,
  list = 3,
  info = 6,
  go = 7,
  structured_reply = 8,
  list_meta_context = 9,
  set_meta_context = 10,
};
inline constexpr std::uint32_t kMostOptionBytes = 32 * 1024 * 1024;  // QEMU limit

enum class OptionReply : std::uint32_t {
  ack = 1,
  server = 2,
  info = 3,
  meta_context = 4,
  unsupported = 0x80000001,
  invalid = 0x80000003,
  unknown = 0x80000006,
};
inline constexpr std::uint16_t kInfoExport = 0;

// "Transmission flags"
inline constexpr std::uint16_t kHasFlags = 1U << 0U;
inline constexpr std::uint16_t kReadOnly = 1U << 1U;
inline constexpr std::uint16_t kSendFlush = 1U << 2U;
inline constexpr std::uint16_t kSendDf = 1U << 7U;
inline constexpr std::uint16_t kCanMultiConn = 1U << 8U;

enum class Request : std::uint16_t { read = 0, disconnect = 2, flush = 3, block_status = 7 };
inline constexpr std::uint16_t kRequestOne = 1U << 3U;             // NBD_CMD_FLAG_REQ_ONE
inline constexpr std::uint32_t kMostReadBytes = 32 * 1024 * 1024;  // QEMU limit

inline constexpr std::uint16_t kChunkDone = 1;
enum class Chunk : std::uint16_t { none = 0, data = 1, block_status = 5, error = 0x8001 };
inline constexpr std::size_t kMostExtents = 131'072;  // a reply; QEMU limit

inline constexpr std::uint32_t kNotPermitted = 1;  // NBD_EPERM
inline constexpr std::uint32_t kInputOutput = 5;
inline constexpr std::uint32_t kInvalid = 22;

// "base:allocation"
inline constexpr std::uint32_t kHole = 1;
inline constexpr std::uint32_t kZero = 2;
// "qemu:dirty-bitmap"
inline constexpr std::uint32_t kDirty = 1;

/// Numbers, enumerations and texts as they stand on the wire, one after the other.
template <class... Parts>
std::string wire(const Parts&... parts) {
  std::string bytes;
  const auto add = [&](const auto& part) {
    using Part = std::decay_t<decltype(part)>;
    if constexpr (std::is_convertible_v<decltype(part), std::string_view>) {
      bytes += std::string_view(part);
    } else if constexpr (std::is_enum_v<Part>) {
      const BigEndian<std::underlying_type_t<Part>> number(
          static_cast<std::underlying_type_t<Part>>(part));
      bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
    } else {
      const BigEndian<Part> number(part);
      bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
    }
  };
  (add(parts), ...);
  return bytes;
}

}  // namespace nbdelta::sim::nbd
