#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/process.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {

using ::testing::HasSubstr;

/// NBD block status flags, as the views use them (docs/extents.md).
inline constexpr std::uint64_t kData = 0;
inline constexpr std::uint64_t kUnchanged = 1;
inline constexpr std::uint64_t kZero = 2;
inline constexpr std::uint64_t kHole = 3;

/// What the plugin says when it refuses to start; fails the test where it does not refuse.
inline std::string refusal(const Command& parameters) {
  const Outcome outcome = try_delta(parameters);
  EXPECT_EQ(outcome.status, 1) << outcome.err;
  return outcome.err;
}

/// What a running plugin logs when a client asks for an export that it refuses.
inline std::string refusal(const NbdServer& server, const std::string& export_name) {
  const std::string before = server.errors();
  const Outcome outcome = run({"nbdinfo", "--size", server.uri(export_name)});
  EXPECT_NE(outcome.status, 0) << export_name << ": " << outcome.out;
  return server.errors().substr(before.size());
}

/// Checks that an export reads as the image does. Not by qemu-img compare, which takes what is
/// unchanged for something else than data.
inline void expect_reads_as(const std::string& uri, const std::string& image) {
  const TempFolder folder;
  run_ok({"nbdcopy", uri, folder / "copy.raw"});
  EXPECT_EQ(difference(image, "qcow2", folder / "copy.raw", "raw"), "") << uri;
}

class PluginTest : public ::testing::Test {
 protected:
  TempFolder folder;
  const std::string disk = folder / "disk.qcow2";

  /// `disk`, 4 MiB: 1 MiB of data, then bitmap b0, then three changes: 64 KiB written at 128 KiB,
  /// zeroed at 256 KiB, discarded at 512 KiB. previous.qcow2 is the disk before them.
  void make_changed_disk(const std::string& options = {}) {
    create_image(disk, "qcow2", 4 * kMiB, options);
    qemu_io(disk, "qcow2", {"write -q -P 7 0 1M"});
    qemu_img({"convert", "-O", "qcow2", disk, folder / "previous.qcow2"});
    qemu_img({"bitmap", "--add", disk, "b0"});
    qemu_io(disk, "qcow2",
            {"write -q -P 8 128k 64k", "write -q -z 256k 64k", "discard -q 512k 64k"},
            {"-d", "unmap"});
  }

  /// What dirty:b0 says then.
  static std::vector<NbdExtent> changed_map() {
    const std::uint64_t step = 64 * kKiB;
    return {{0, 2 * step, kUnchanged},        {2 * step, step, kData},
            {3 * step, step, kUnchanged},     {4 * step, step, kZero},
            {5 * step, 3 * step, kUnchanged}, {8 * step, step, kZero},
            {9 * step, 55 * step, kUnchanged}};
  }
};

}  // namespace nbdelta::testing
