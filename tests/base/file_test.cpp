#include "base/file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta {
namespace {

std::span<const std::byte> bytes(std::string_view text) {
  return std::as_bytes(std::span(text));
}

std::string read(const File& file, std::size_t length, std::uint64_t offset) {
  std::string out(length, '?');
  out.resize(file.read_at(std::as_writable_bytes(std::span(out)), offset));
  return out;
}

template <class Action>
void expect_error(int number, std::string_view part, Action action) {
  try {
    action();
    ADD_FAILURE() << "did not throw";
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), number);
    EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos) << error.what();
  }
}

class FileTest : public ::testing::Test {
 protected:
  testing::TempFolder folder_;
  std::string path_ = folder_ / "disk";
  File file_ = File::open(path_, O_RDWR | O_CREAT | O_EXCL);
};

TEST_F(FileTest, ReadsWhatWasWritten) {
  file_.write_at(bytes("hello"), 3);
  EXPECT_EQ(file_.size(), 8U);
  EXPECT_EQ(read(file_, 5, 3), "hello");
  EXPECT_EQ(read(file_, 3, 0), std::string(3, '\0'));
  EXPECT_EQ(file_.name(), path_);
}

TEST_F(FileTest, ReadEndsAtTheEndOfTheFile) {
  file_.write_at(bytes("hello"), 0);
  EXPECT_EQ(read(file_, 100, 2), "llo");
  EXPECT_EQ(read(file_, 100, 5), "");
  EXPECT_EQ(read(file_, 100, 5000), "");
}

TEST_F(FileTest, ExactReadPastTheEndSaysWhere) {
  file_.write_at(bytes("hello"), 0);
  std::vector<std::byte> out(4);
  file_.read_exactly_at(out, 1);
  expect_error(EIO, "disk: 4 bytes at 0x2 are past the end of the file (0x5)",
               [&] { file_.read_exactly_at(out, 2); });
}

TEST_F(FileTest, OpenSaysWhatIsMissing) {
  expect_error(ENOENT, folder_ / "none: cannot open: No such file",
               [&] { File::open(folder_ / "none", O_RDONLY); });
}

TEST_F(FileTest, IsNotInheritedByOtherPrograms) {
  EXPECT_NE(::fcntl(file_.fd(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(FileTest, WriteToAReadOnlyFileIsAnError) {
  const File reader = File::open(path_, O_RDONLY);
  expect_error(EBADF, "disk: cannot write", [&] { reader.write_at(bytes("x"), 0); });
}

TEST_F(FileTest, FullFileIsAnError) {
  const File full = File::open("/dev/full", O_WRONLY);
  expect_error(ENOSPC, "/dev/full: cannot write 1 bytes at 0x0",
               [&] { full.write_at(bytes("x"), 0); });
}

TEST_F(FileTest, ShortWritesAreContinuedUntilTheLimit) {
  // The limit cuts the first write short; the second then fails.
  struct rlimit before {};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small { 3, before.rlim_max };
  ::setrlimit(RLIMIT_FSIZE, &small);
  expect_error(EFBIG, "disk: cannot write 2 bytes at 0x3",
               [&] { file_.write_at(bytes("hello"), 0); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(file_.size(), 3U);
}

TEST_F(FileTest, ResizeMakesHolesAndCuts) {
  file_.resize(std::uint64_t{1} << 40);
  EXPECT_EQ(file_.size(), std::uint64_t{1} << 40);
  EXPECT_LT(file_.status().st_blocks, 100);
  file_.resize(10);
  EXPECT_EQ(file_.size(), 10U);
  file_.sync();
  sync_folder_of(path_);
}

TEST_F(FileTest, SyncsTheCurrentFolderForAPlainName) {
  sync_folder_of("disk");
}

TEST_F(FileTest, SyncOfAFolderThatIsMissingIsAnError) {
  expect_error(ENOENT, "none: cannot open", [&] { sync_folder_of(folder_ / "none/disk"); });
}

/// A device's node is on a tmpfs too, what is read from the device is not.
TEST(FileInMemory, IsARegularFileOnTmpfs) {
  const File memory(FileDescriptor(::memfd_create("file", MFD_CLOEXEC)), "memory");
  ASSERT_TRUE(memory);
  EXPECT_TRUE(memory.is_in_memory());
  EXPECT_FALSE(File::open("/dev/zero", O_RDONLY).is_in_memory());
  EXPECT_FALSE(File::open("/proc/self/status", O_RDONLY).is_in_memory());
}

TEST(FileDescriptorTest, MoveLeavesNothingBehind) {
  FileDescriptor a(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int fd = a.get();
  FileDescriptor b(std::move(a));
  EXPECT_FALSE(a);  // NOLINT(bugprone-use-after-move): that is what is tested
  EXPECT_EQ(b.get(), fd);
  b.reset();
  EXPECT_FALSE(b);
  EXPECT_EQ(::fcntl(fd, F_GETFD), -1);
}

TEST(FileDescriptorTest, ClosesAtItsEnd) {
  int fd = -1;
  {
    const FileDescriptor owner(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    fd = owner.get();
  }
  EXPECT_EQ(::fcntl(fd, F_GETFD), -1);
}

}  // namespace
}  // namespace nbdelta
