#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/arithmetic.hpp"
#include "client/backup/offline.hpp"
#include "client/backup/overlay_files.hpp"
#include "client/backup/real/environment.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::client::backup {

using nbdelta::testing::difference;
using nbdelta::testing::qemu_img;
using nbdelta::testing::qemu_io;
using nbdelta::testing::read_file;
using nbdelta::testing::TempFolder;

inline constexpr std::int64_t kSince = 1'700'000'000;

using List = std::vector<std::string>;

inline bool mentions(const List& lines, const std::string& what) {
  for (const std::string& line : lines)
    if (line.find(what) != std::string::npos)
      return true;
  return false;
}

/// A base, and overlays that a session left over it when QEMU ended.
class Offline : public ::testing::TestWithParam<const char*> {
 protected:
  static constexpr std::uint64_t kSize = 4 * kMiB;

  Offline() : base_(files_.canonical(folder_ / "disk.img")) {
    testing::create_image(base_, format(), kSize);
    qemu_io(base_, format(), {"write -P 1 0 1M", "write -P 2 3M 512k"});
  }

  static std::string format() { return GetParam(); }
  std::string overlay(std::uint32_t number) const {
    return folder_of(base_) + "/" + overlay_file_name({"0123abcd", number}, "vda");
  }

  /// Overlay 1 over the base, with writes.
  void one_overlay() {
    create_overlay(files_, overlay(1), base_, kSize, base_,
                   image::parse_format(format(), "the test"));
    qemu_io(overlay(1), "qcow2", {"write -P 11 64k 64k", "write -z 3M 64k", "write -P 12 2M 512"});
  }
  /// And overlay 2 over that.
  void two_overlays() {
    one_overlay();
    create_overlay(files_, overlay(2), overlay(1), kSize, overlay(1), image::Format::qcow2);
    qemu_io(overlay(2), "qcow2", {"write -P 21 96k 64k", "write -P 22 1M 4k"});
  }
  /// What the guest sees on `path`, kept for later.
  void keep_truth(const std::string& path, const std::string& of_format) {
    qemu_img({"convert", "-f", of_format, "-O", "raw", path, truth_});
  }
  void expect_truth_in_base() {
    EXPECT_EQ(difference(base_, format(), truth_, "raw"), "");
    if (format() == "qcow2") {
      EXPECT_EQ(testing::check_complaints(base_), "");
    }
  }

  Settled recover() { return recover_offline(*environment_, base_, journal_); }

  JournalDisk& journal_entry(std::uint32_t number) {
    if (!journal_) {
      journal_.emplace();
      journal_->since = kSince;
    }
    JournalDisk disk;
    disk.name = "vda";
    disk.base_local = base_;
    disk.overlay_local = overlay(number);
    journal_->disks.push_back(disk);
    return journal_->disks.back();
  }

  static void set_modified(const std::string& path, std::int64_t seconds) {
    const struct timespec times[] = {{seconds, 0}, {seconds, 999'999'999}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0) << path;
  }

  TempFolder folder_;
  asio::io_context loop_;
  std::unique_ptr<Environment> environment_ = real_environment(loop_, {}, {});
  Files& files_ = environment_->files();
  std::string base_;
  std::string truth_ = folder_ / "truth.raw";
  std::optional<Journal> journal_;
};

}  // namespace nbdelta::client::backup
