#include "tests/support/fuse_mount.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

namespace nbdelta::testing {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kPatience{20};

}  // namespace

bool FuseMount::is_possible() {
  return ::access("/dev/fuse", R_OK | W_OK) == 0;
}

FuseMount::FuseMount(const std::string& uri) {
  std::filesystem::create_directory(folder_ / "mount");
  process_.emplace(Command{"nbdfuse", folder_ / "mount", uri});
  const auto deadline = Clock::now() + kPatience;
  while (!std::filesystem::exists(file()) && Clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(std::filesystem::exists(file())) << process_->err();
}

FuseMount::~FuseMount() {
  if (process_)
    unmount();
}

void FuseMount::unmount() {
  EXPECT_TRUE(run({"fusermount3", "-u", folder_ / "mount"}).ok());
  EXPECT_TRUE(process_->wait(kPatience));
  process_.reset();
}

}  // namespace nbdelta::testing
