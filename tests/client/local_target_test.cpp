// What a target on this machine does with the page cache.

#include "client/target/local_target.hpp"

#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include <functional>
#include <string>
#include <vector>

#include "tests/client/client_run.hpp"
#include "tests/support/page_cache.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using client::target::LocalTarget;
using client::target::Writer;

/// Counts how often it is to drop what is cached.
class CountingTarget : public LocalTarget {
 public:
  const image::ExtentMap& prepare(const client::target::Description& description,
                                  client::asio::io_context& /*loop*/) override {
    return *description.map;
  }
  void finish() override {}
  std::string abandon() noexcept override { return {}; }

  bool copies = true;
  int drops = 0;
  std::function<void()> meanwhile;  // within drop_cached()

 protected:
  void write_at(std::span<const std::byte> /*data*/, std::uint64_t /*offset*/) override {}
  bool copy_at(const File& /*from*/, std::uint64_t /*from_offset*/, std::uint64_t /*length*/,
               std::uint64_t /*offset*/) override {
    return copies;
  }
  void zero_at(std::uint64_t /*offset*/, std::uint64_t /*length*/) override {}
  void drop_cached() noexcept override {
    ++drops;
    if (meanwhile)
      meanwhile();
  }
};

void write(Writer& writer, client::asio::io_context& loop, std::uint64_t length) {
  const std::vector<std::byte> data(length);
  client::asio::co_spawn(loop, writer.write(data, 0), client::asio::detached);
  loop.restart();
  loop.run();
}

TEST(LocalTarget, DropsAfterEachEightMebibytesOfAllWriters) {
  CountingTarget target;
  client::asio::io_context loop;
  const auto one = target.writer(loop);
  const auto other = target.writer(loop);
  for (int i = 0; i < 7; ++i)
    write(i % 2 == 0 ? *one : *other, loop, kMiB);
  EXPECT_EQ(target.drops, 0);
  write(*one, loop, kMiB + 512);
  EXPECT_EQ(target.drops, 1);
  for (int i = 0; i < 16; ++i)
    write(*other, loop, kMiB);
  EXPECT_EQ(target.drops, 3);
}

TEST(LocalTarget, GoesOnWritingWhileAnotherDrops) {
  CountingTarget target;
  client::asio::io_context loop;
  const auto one = target.writer(loop);
  const auto other = target.writer(loop);
  target.meanwhile = [&] { EXPECT_TRUE(other->copy({}, 0, 16 * kMiB, 0)); };
  EXPECT_TRUE(one->copy({}, 0, 8 * kMiB, 0));
  EXPECT_EQ(target.drops, 1);
  target.meanwhile = nullptr;
  EXPECT_TRUE(one->copy({}, 0, 8 * kMiB, 0));
  EXPECT_EQ(target.drops, 2);
}

TEST(LocalTarget, DropsAfterCopiesByTheKernelOnly) {
  CountingTarget target;
  client::asio::io_context loop;
  const auto writer = target.writer(loop);
  EXPECT_TRUE(writer->copy({}, 0, 16 * kMiB, 0));
  EXPECT_EQ(target.drops, 1);
  target.copies = false;
  EXPECT_FALSE(writer->copy({}, 0, 16 * kMiB, 0));
  EXPECT_EQ(target.drops, 1);
}

bool in_memory(const std::string& path) {
  struct statfs facts {};
  EXPECT_EQ(::statfs(path.c_str(), &facts), 0);
  return facts.f_type == TMPFS_MAGIC;
}

TEST(LocalTarget, WhatWasPulledIsNotKeptInThePageCache) {
  const TempFolder folder;
  if (in_memory(folder.path()))
    GTEST_SKIP() << folder.path() << " is in memory";
  const NbdServer from = NbdServer::nbdkit("pattern", {"64M"});
  const auto leaves_the_cache = [&](const std::string& name, const Command& options) {
    Command arguments{from.uri(), folder / name};
    arguments.insert(arguments.end(), options.begin(), options.end());
    pulled(arguments);
    EXPECT_LT(cached_bytes(folder / name), 4 * kMiB) << name;
  };
  leaves_the_cache("copy.raw", {});
  leaves_the_cache("copy.qcow2", {});
  run_ok({"truncate", "-s", "64M", folder / "old.raw"});
  leaves_the_cache("old.raw", {"--apply", "--full"});
}

}  // namespace
}  // namespace nbdelta::testing
