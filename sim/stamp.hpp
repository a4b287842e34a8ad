#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/big_endian.hpp"
#include "sim/image.hpp"

namespace nbdelta::sim {

/// Bytes of a granule in a file.
inline constexpr std::size_t kFileGranule = 4096;
using GranuleBytes = std::array<std::byte, kFileGranule>;

/// What a granule of the guest's write is filled with, over and over: which write it was, and where
/// it belongs, so that bytes that got to another place are noticed. Writes of all disks are counted
/// together, so the number tells the disk too.
struct Stamp {
  be32 magic;
  be32 number;
  be64 granule;
};
static_assert(sizeof(Stamp) == 16 && kFileGranule % sizeof(Stamp) == 0);
inline constexpr std::uint32_t kStampMagic = 0x6e62'6421;  // "nbd!"

/// `number` 0 gives zeros. Requires out.size() == kFileGranule.
void fill_with_stamp(std::span<std::byte> out, std::uint64_t granule, WriteNumber number);

/// Of bytes that fill_with_stamp() gives for that granule; nothing for any others.
std::optional<WriteNumber> stamp_number(std::span<const std::byte> bytes, std::uint64_t granule);

/// What a granule holds, for comparison: the number of the write, 0 for zeros, or a hash with the
/// uppermost bit set of bytes that are no stamp of that granule.
std::uint64_t content_of(std::span<const std::byte> bytes, std::uint64_t granule);
inline constexpr std::uint64_t kForeignContent = std::uint64_t{1} << 63;

/// Gives numbers to granules that were in an image before the guest wrote to it, so that jobs can
/// carry them from one image to another. For one thread.
class ForeignGranules {
 public:
  static constexpr WriteNumber kFirst = 0x8000'0000;
  /// What is held in memory: 1 GiB. A disk with more data of its own cannot be worked with here.
  static constexpr std::size_t kMost = 262'144;

  /// A write's, or one of these. Throws Error (ENOMEM) where there are too many different ones.
  WriteNumber number_of(std::span<const std::byte> bytes, std::uint64_t granule);
  /// The bytes of any number, a write's or one of these.
  void fill(std::span<std::byte> out, std::uint64_t granule, WriteNumber number) const;

 private:
  std::map<GranuleBytes, WriteNumber> numbers_;
  std::vector<const GranuleBytes*> granules_;
};

}  // namespace nbdelta::sim
