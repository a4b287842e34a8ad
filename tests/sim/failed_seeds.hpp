#pragma once

#include <cstdint>

namespace nbdelta::testing {

/// Seeds whose schedules have shown something to be wrong once: of sessions, or of the simulator.
inline constexpr std::uint64_t kFailedSeeds[] = {
    11,    38,    123,   160,   242,   286,   349,   499,   598,   709,   924,
    934,   1018,  1155,  1169,  2468,  2825,  3420,  3739,  4909,  5383,  6685,
    6824,  6951,  7205,  10064, 10114, 11540, 14016, 34177, 38764, 41470, 43544,
    45369, 55732, 64465, 72164, 72652, 82240, 85411, 85985, 85997, 88798, 98534};

}  // namespace nbdelta::testing
