// What goes to the kernel, and when, where it copies from an image that the client opens itself.

#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <atomic>
#include <chrono>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/pull/direct.hpp"
#include "client/target/local_target.hpp"
#include "image/view.hpp"
#include "tests/support/page_cache.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
using std::chrono::steady_clock;

bool is_on(const std::string& path, long file_system) {
  struct statfs facts {};
  return ::statfs(path.c_str(), &facts) == 0 && facts.f_type == file_system;
}

/// Writes nothing, and looks on while it is to copy.
class Watcher : public client::target::LocalTarget {
 public:
  explicit Watcher(std::string source) : source_(std::move(source)) {}

  const image::ExtentMap& prepare(const client::target::Description& description,
                                  client::asio::io_context& /*loop*/) override {
    return *description.map;
  }
  void finish() override {}
  std::string abandon() noexcept override { return {}; }

  /// Have it wait, when it is first to copy, until these bytes of the source are in the page cache.
  void await(std::uint64_t offset, std::uint64_t length, steady_clock::duration patience) {
    awaited_ = offset;
    length_ = length;
    patience_ = patience;
  }
  std::uint64_t came() const { return came_; }
  /// Threads that were in copy_at() at once. Each stays there for a while.
  int most() const { return most_; }

 protected:
  bool copy_at(const File& /*from*/, std::uint64_t /*from_offset*/, std::uint64_t /*length*/,
               std::uint64_t /*offset*/) override {
    const int now = ++inside_;
    for (int most = most_; now > most && !most_.compare_exchange_weak(most, now);) {
    }
    look();
    std::this_thread::sleep_for(5ms);
    --inside_;
    return true;
  }
  void write_at(std::span<const std::byte> /*data*/, std::uint64_t /*offset*/) override {}
  void zero_at(std::uint64_t /*offset*/, std::uint64_t /*length*/) override {}

 private:
  void look() {
    if (length_ == 0 || looked_.exchange(true))
      return;
    // The kernel need not take all that is announced.
    for (const auto end = steady_clock::now() + patience_; steady_clock::now() < end;) {
      came_ = cached_bytes(source_, awaited_, length_);
      if (came_ >= length_ * 9 / 10)
        return;
      std::this_thread::sleep_for(10ms);
    }
  }

  const std::string source_;
  std::uint64_t awaited_ = 0;
  std::uint64_t length_ = 0;
  steady_clock::duration patience_{};
  std::atomic<std::uint64_t> came_ = 0;
  std::atomic<bool> looked_ = false;
  std::atomic<int> inside_ = 0;
  std::atomic<int> most_ = 0;
};

class DirectCopying : public ::testing::Test {
 protected:
  DirectCopying() {
    create_image(raw_, "raw", 64 * kMiB);
    qemu_io(raw_, "raw", {"write -q -P 1 0 64M"});
  }

  void copy(const std::string& path, image::Format format, client::target::Target& target,
            std::uint64_t rate = 0) {
    image::OpenOptions options;
    options.format = format;
    const image::Disk disk = image::Disk::open(path, options);
    client::pull::Settings settings;
    settings.rate = rate;
    const image::ExtentMap map = image::read_map(image::View::image(disk), [] {});
    client::asio::io_context loop;
    client::pull::Counters counters;
    std::stop_source stop;
    client::pull::run_direct(loop, disk, {}, target, map, settings, counters, stop);
    EXPECT_EQ(counters.written, 64 * kMiB);
  }

  TempFolder folder_;
  const std::string raw_ = folder_ / "disk.raw";
};

/// The end of what one thread takes at a time comes from the disk before its beginning is copied.
TEST_F(DirectCopying, LongRunsAreAnnounced) {
  if (!is_on(raw_, EXT4_SUPER_MAGIC) || !drop_from_page_cache(raw_))
    GTEST_SKIP() << "nothing is announced here, or the page cache cannot be emptied";
  Watcher target(raw_);
  target.await(15 * kMiB, kMiB, 5s);
  copy(raw_, image::Format::raw, target);
  EXPECT_GE(target.came(), kMiB * 9 / 10);
}

/// With a rate the disk is spared, too.
TEST_F(DirectCopying, NothingIsAnnouncedWithARate) {
  if (!drop_from_page_cache(raw_))
    GTEST_SKIP() << "the page cache of this file system cannot be emptied";
  Watcher target(raw_);
  target.await(15 * kMiB, kMiB, 500ms);
  copy(raw_, image::Format::raw, target, 100 * kGiB);
  EXPECT_EQ(target.came(), 0);
}

TEST_F(DirectCopying, OneThreadAtATimeCopiesLongRuns) {
  if (!is_on(raw_, EXT4_SUPER_MAGIC) && !is_on(raw_, TMPFS_MAGIC))
    GTEST_SKIP() << "copies may share blocks here";
  Watcher target(raw_);
  copy(raw_, image::Format::raw, target);
  EXPECT_EQ(target.most(), 1);
}

/// In the image the clusters lie in reverse order, so each is a run of its own.
TEST_F(DirectCopying, TwoThreadsCopyShortRuns) {
  const std::string reversed = folder_ / "reversed.qcow2";
  create_image(reversed, "qcow2", 64 * kMiB, "cluster_size=512k");
  std::vector<std::string> writes;
  for (int cluster = 127; cluster >= 0; --cluster)
    writes.push_back("write -q -P 1 " + std::to_string(cluster * 512) + "k 512k");
  qemu_io(reversed, "qcow2", writes);
  Watcher target(reversed);
  copy(reversed, image::Format::qcow2, target);
  EXPECT_EQ(target.most(), 2);
}

}  // namespace
}  // namespace nbdelta::testing
