#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace nbdelta {

/// An unsigned integer as it stands on disk or on the wire: most significant byte first, no
/// alignment. Structures made of these can be copied to and from a file as they are.
template <class Unsigned>
class BigEndian {
 public:
  BigEndian() = default;
  BigEndian(Unsigned value) {  // NOLINT(google-explicit-constructor): it is the integer
    for (std::size_t i = sizeof(Unsigned); i-- > 0; value = static_cast<Unsigned>(value >> 8))
      bytes_[i] = static_cast<unsigned char>(value);
  }

  operator Unsigned() const {  // NOLINT(google-explicit-constructor): it is the integer
    Unsigned value = 0;
    for (unsigned char byte : bytes_)
      value = static_cast<Unsigned>(static_cast<std::uint64_t>(value) << 8 | byte);
    return value;
  }

 private:
  std::array<unsigned char, sizeof(Unsigned)> bytes_;
};

using be16 = BigEndian<std::uint16_t>;
using be32 = BigEndian<std::uint32_t>;
using be64 = BigEndian<std::uint64_t>;
static_assert(sizeof(be64) == 8 && alignof(be64) == 1);

}  // namespace nbdelta
