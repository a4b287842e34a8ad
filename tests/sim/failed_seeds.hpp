#pragma once

#include <cstdint>

namespace nbdelta::testing {

/// Seeds whose schedules have shown something to be wrong once: of sessions, or of the simulator.
inline constexpr std::uint64_t kFailedSeeds[] = {
    11,    38,    123,   160,   242,   286,   349,   499,   598,   709,   924,   934,
    1018,  1155,  1169,  2468,  2825,  3272,  3420,  3739,  4909,  5383,  6685,  6824,
    6951,  7205,  9235,  9878,  10064, 10114, 11540, 14016, 14908, 15095, 18544, 29524,
    33215, 34177, 38764, 41470, 42483, 43300, 43544, 45369, 47321, 49118, 49529, 55732,
    55768, 59580, 60982, 62473, 63914, 64465, 72164, 72295, 72344, 72652, 77167, 82186,
    82240, 82455, 85411, 85985, 85997, 88798, 90090, 98534};

}  // namespace nbdelta::testing
