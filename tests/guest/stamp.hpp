#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace nbdelta::testing {

/// What the guest's writer fills a sector with: sixteen times the same stamp. Numbers are as the
/// machine has them: guest and host are one and the same. Writer and checker share this header and
/// nothing else, so it needs no library.
struct Stamp {
  std::uint64_t magic = 0;
  std::uint64_t sequence = 0;  // of the operation, from 1, one count for all disks
  std::uint64_t offset = 0;    // of the sector on its disk
  std::uint64_t disk = 0;      // the how manyth of the disks that are written to directly, from 0

  bool operator==(const Stamp&) const = default;
};
static_assert(sizeof(Stamp) == 32);

inline constexpr std::uint64_t kStampMagic = 0x6e62'6465'6c74'6121;  // "nbdelta!"

/// What a disk writes as a whole or not at all.
inline constexpr std::size_t kSectorSize = 512;
using Sector = std::array<Stamp, kSectorSize / sizeof(Stamp)>;
static_assert(sizeof(Sector) == kSectorSize);

inline Sector stamped_sector(std::uint64_t sequence, std::uint64_t disk, std::uint64_t offset) {
  Sector sector;
  sector.fill(Stamp{kStampMagic, sequence, offset, disk});
  return sector;
}

/// Lengths of the writer's operations, and what their offsets are multiples of.
inline constexpr std::uint64_t kWriteLength = 4096;
inline constexpr std::uint64_t kZeroLength = 64 * 1024;  // and of discards

/// Names of the guest's virtio-serial ports; the agent's is what qemu-ga has by default.
inline constexpr char kLogPort[] = "nbdelta.log";
inline constexpr char kControlPort[] = "nbdelta.control";
/// What the guest says on its console once it takes commands.
inline constexpr char kReadyMessage[] = "nbdelta-guest ready";

}  // namespace nbdelta::testing
