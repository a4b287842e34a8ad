#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/guest/operation_log.hpp"

namespace nbdelta::testing {

// Both checks take the contents of the disks that the guest writes to directly, as raw files
// (`qemu-img convert -O raw`), in the order of their numbers in the log. The disks were all zeros
// when the guest began. They return what is wrong, for people, or nothing; throw Error where a file
// cannot be read.
//
// What they rest on: operations on one disk do not overlap in time. A sector may hold what its last
// operation left there; where that was a discard, zeros or what was there before. An operation that
// failed may have been done or not.

/// The disks are those of one instant: there is a place in the log so that every operation done
/// before it is there (unless overwritten by a later one), and none that began after it. At that
/// place every operation below `done_before` that was acknowledged has been done, and none above
/// `not_after` has begun.
std::vector<std::string> check_instant(const std::vector<std::string>& disks,
                                       const std::vector<LoggedOperation>& operations,
                                       std::uint64_t done_before, std::uint64_t not_after);

/// After a crash or the end of the guest: whatever was acknowledged is there. What was in flight
/// may be there or not; so may operations that follow the log's last one, for its last lines may
/// have gone with QEMU.
std::vector<std::string> check_nothing_lost(const std::vector<std::string>& disks,
                                            const std::vector<LoggedOperation>& operations);

/// A whole disk with an ext4 file system, as a raw file: replays its journal and repairs what a
/// crash may leave (`e2fsck -fp`, in the file), then looks for anything else (`e2fsck -fn`).
std::vector<std::string> check_file_system(const std::string& disk);

/// The same where the guest had it frozen: there is nothing to replay and nothing to repair.
std::vector<std::string> check_frozen_file_system(const std::string& disk);

}  // namespace nbdelta::testing
