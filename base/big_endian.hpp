#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace nbdelta {

/// An unsigned integer as it stands on disk or on the wire: most significant byte first, no
/// alignment. Structures made of these can be copied to and from a file as they are.
template <class Unsigned>
class BigEndian {
 public:
  BigEndian() = default;
  BigEndian(Unsigned value) {  // NOLINT(google-explicit-constructor): it is the integer
    const Unsigned stored = swapped(value);
    std::memcpy(bytes_.data(), &stored, sizeof stored);
  }

  operator Unsigned() const {  // NOLINT(google-explicit-constructor): it is the integer
    Unsigned stored = 0;
    std::memcpy(&stored, bytes_.data(), sizeof stored);
    return swapped(stored);
  }

 private:
  /// Compilers turn this into one instruction, which a loop over the bytes is not with GCC 12.
  static constexpr Unsigned swapped(Unsigned value) {
    if constexpr (std::endian::native == std::endian::big || sizeof(Unsigned) == 1)
      return value;
    else if constexpr (sizeof(Unsigned) == 2)
      return __builtin_bswap16(value);
    else if constexpr (sizeof(Unsigned) == 4)
      return __builtin_bswap32(value);
    else
      return __builtin_bswap64(value);
  }

  std::array<unsigned char, sizeof(Unsigned)> bytes_;
};

using be16 = BigEndian<std::uint16_t>;
using be32 = BigEndian<std::uint32_t>;
using be64 = BigEndian<std::uint64_t>;
static_assert(sizeof(be64) == 8 && alignof(be64) == 1);

}  // namespace nbdelta
