// Pulls from an image that the client opens itself, compared with what QEMU's tools read.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <thread>
#include <utility>

#include "tests/client/changed_disk.hpp"
#include "tests/client/client_run.hpp"
#include "tests/support/page_cache.hpp"

namespace nbdelta::testing {
namespace {

bool has_open(pid_t process, const std::string& file) {
  std::error_code error;
  for (std::filesystem::directory_iterator it(fmt::format("/proc/{}/fd", process), error), end;
       !error && it != end; it.increment(error)) {
    std::error_code gone;
    if (std::filesystem::read_symlink(it->path(), gone) == file)
      return true;
  }
  return false;
}

class Direct : public ::testing::Test {
 protected:
  std::string uri(const std::string& options = "") const {
    return "delta:" + disk_.image() + options;
  }
  void expect_equal(const std::string& file, const std::string& format) const {
    EXPECT_EQ(difference(file, format, disk_.image(), "qcow2"), "") << file;
  }
  void expect_refused(const std::string& source, int status, const std::string& why) const {
    const Outcome outcome = nbdelta({"pull", source, disk_ / "no.raw"});
    EXPECT_EQ(outcome.status, status) << source;
    EXPECT_NE(outcome.err.find(why), std::string::npos) << source << ": " << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(disk_ / "no.raw")) << source;
  }

  Random random_ = Random::from_environment();
  ChangedDisk disk_{random_};
};

TEST_F(Direct, TheWholeDisk) {
  for (const char* format : {"raw", "qcow2"}) {
    const std::string target = disk_ / ("whole." + std::string(format));
    const auto result = pulled({uri(), target});
    EXPECT_FALSE(result.at("changed_view").as_bool());
    EXPECT_EQ(result.at("disk_size").to_number<std::uint64_t>(), kDisk);
    expect_equal(target, format);
    EXPECT_EQ(check_complaints(disk_.image()), "");
  }
}

TEST_F(Direct, WhatHasChanged) {
  const std::string target = disk_ / "inc.qcow2";
  const auto result = pulled({uri("?bitmap=b0"), target, "--base", "full.qcow2"});
  EXPECT_TRUE(result.at("changed_view").as_bool());
  EXPECT_LT(result.at("bytes_written").to_number<std::uint64_t>(), kDisk);
  expect_equal(target, "qcow2");
  EXPECT_EQ(check_complaints(target), "");
  pulled({uri("?bitmap=b0"), disk_.full_raw(), "--apply"});
  expect_equal(disk_.full_raw(), "raw");
}

/// Over NBD and directly is the same.
TEST_F(Direct, CountsWhatAServerWouldHaveTold) {
  const NbdServer server = NbdServer::delta({disk_.image()});
  const auto over_nbd = pulled({server.uri("dirty:b0"), "null:"});
  const auto direct = pulled({uri("?bitmap=b0"), "null:"});
  for (const char* member : {"disk_size", "extents", "bytes_written", "bytes_zeroed"})
    EXPECT_EQ(direct.at(member), over_nbd.at(member)) << member;
}

TEST_F(Direct, MapIsWhatAServerTells) {
  const NbdServer server = NbdServer::delta({disk_.image()});
  for (const auto& [export_name, options] :
       {std::pair("dirty:b0", "?bitmap=b0"), std::pair("image", ""),
        std::pair("layer", "?view=layer")})
    EXPECT_EQ(run_ok(nbdelta_command({"map", "--json", uri(options)})),
              run_ok(nbdelta_command({"map", "--json", server.uri(export_name)})))
        << export_name;
}

TEST_F(Direct, FullIgnoresTheBitmap) {
  const auto result = pulled({uri("?bitmap=b0"), disk_ / "full-again.raw", "--full"});
  EXPECT_FALSE(result.at("changed_view").as_bool());
  expect_equal(disk_ / "full-again.raw", "raw");
}

TEST_F(Direct, ToAnNbdServer) {
  {
    const NbdServer to = NbdServer::nbdkit("file", {disk_.full_raw()});
    pulled({uri("?bitmap=b0"), to.uri(), "--apply"});
  }
  expect_equal(disk_.full_raw(), "raw");
}

TEST_F(Direct, ToAnNbdServerForOneClient) {
  {
    const NbdServer to = NbdServer::qemu_nbd({"--shared=1", "-f", "raw", disk_.full_raw()});
    pulled({uri("?bitmap=b0"), to.uri(), "--apply", "--timeout", "10"});
  }
  expect_equal(disk_.full_raw(), "raw");
}

TEST_F(Direct, WhatAnOverlayHolds) {
  qemu_img({"create", "-f", "qcow2", "-b", disk_.image(), "-F", "qcow2", disk_ / "over.qcow2"});
  qemu_io(disk_ / "over.qcow2", "qcow2", {"write -q -P 7 1M 100k", "write -q -z 2M 64k"});
  const std::string copy = disk_ / "copy.raw";
  pulled({uri(), copy});
  const auto result = pulled({"delta:" + (disk_ / "over.qcow2") + "?view=layer", copy, "--apply"});
  EXPECT_LT(result.at("bytes_written").to_number<std::uint64_t>(), 1024 * 1024U);
  EXPECT_EQ(difference(copy, "raw", disk_ / "over.qcow2", "qcow2"), "");
  const std::string folder = std::filesystem::path(disk_.image()).parent_path();
  pulled({"delta:" + (disk_ / "over.qcow2") + "?backing=" + folder, disk_ / "all.raw"});
  EXPECT_EQ(difference(disk_ / "all.raw", "raw", disk_ / "over.qcow2", "qcow2"), "");
}

TEST_F(Direct, OfEveryKindOfImage) {
  const std::string raw = disk_.full_raw();
  for (const Command& options :
       {Command{"-f", "raw"}, Command{"-f", "qcow2", "-o", "cluster_size=4k"},
        Command{"-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k"},
        Command{"-f", "qcow2", "-o", "compat=0.10"}, Command{"-f", "qcow2", "-c"},
        Command{"-f", "qcow2", "-c", "-o", "compression_type=zstd"}}) {
    Command convert{"convert", "-O"};
    convert.insert(convert.end(), options.begin() + 1, options.end());
    const std::string image = disk_ / ("kind." + options[1]);
    convert.insert(convert.end(), {disk_.full_qcow2(), image});
    qemu_img(convert);
    SCOPED_TRACE(::testing::PrintToString(options));
    pulled({"delta:" + image + "?format=" + options[1], disk_ / "kind-copy.raw", "--force"});
    EXPECT_EQ(difference(disk_ / "kind-copy.raw", "raw", raw, "raw"), "");
    pulled({"delta:" + image + "?format=" + options[1], disk_ / "kind-copy.qcow2", "--force"});
    EXPECT_EQ(difference(disk_ / "kind-copy.qcow2", "qcow2", raw, "raw"), "");
  }
}

TEST_F(Direct, PathsWithOddCharacters) {
  const std::string odd = disk_ / "a b?c&d%e.qcow2";
  std::filesystem::copy_file(disk_.image(), odd);
  std::string encoded = disk_ / "a%20b%3Fc%26d%25e.qcow2";
  pulled({"delta:" + encoded, disk_ / "odd.raw"});
  expect_equal(disk_ / "odd.raw", "raw");
}

TEST_F(Direct, RefusesWhatMakesNoSense) {
  expect_refused("delta:", 2, "which image");
  expect_refused(uri("?bitmap=b0&view=layer"), 2, "exclude each other");
  expect_refused(uri("?bitmap="), 2, "expected bitmap=NAME");
  expect_refused(uri("?colour=red"), 2, "colour=red");
  expect_refused(uri("?bitmap=b0&bitmap=b1"), 2, "bitmap= may be given once");
  expect_refused(uri("?lock=maybe"), 2, "on or off");
  expect_refused(uri("?format=vmdk"), 2, "vmdk");
  expect_refused(uri("?bitmap=b9"), 1, "b9");
  const Outcome context = nbdelta({"pull", uri(), "null:", "--context", "qemu:dirty-bitmap:b0"});
  EXPECT_EQ(context.status, 2);
  EXPECT_NE(context.err.find("?bitmap=NAME"), std::string::npos) << context.err;
  expect_refused("delta:" + disk_.full_raw() + "?format=raw&bitmap=b0", 1,
                 "a raw image holds no bitmaps");
  expect_refused("delta:" + (disk_ / "missing.qcow2"), 1, "missing.qcow2");
}

TEST_F(Direct, RefusesItsSourceAsTarget) {
  const std::string raw = disk_.full_raw();
  std::filesystem::create_symlink(raw, disk_ / "link.raw");
  std::filesystem::create_hard_link(raw, disk_ / "target.raw.partial");
  const auto size = std::filesystem::file_size(raw);
  for (const Command& target :
       {Command{raw, "--apply"}, Command{raw, "--force"}, Command{disk_ / "link.raw", "--force"},
        Command{disk_ / "target.raw"}}) {
    Command pull{"pull", "delta:" + raw + "?format=raw&lock=off"};
    pull.insert(pull.end(), target.begin(), target.end());
    const Outcome outcome = nbdelta(pull);
    EXPECT_EQ(outcome.status, 3) << target.front();
    EXPECT_NE(outcome.err.find("the source"), std::string::npos) << outcome.err;
    EXPECT_EQ(std::filesystem::file_size(raw), size);
  }
}

/// The locks would say the same, but they may be off.
TEST_F(Direct, RefusesEveryFileOfItsSourceAsTarget) {
  namespace fs = std::filesystem;
  run_ok({"cp", disk_.full_raw(), disk_ / "base.raw"});
  create_overlay(disk_ / "mid.partial", "base.raw", "raw");
  create_overlay(disk_ / "a.raw.nbdelta-unfinished", "mid.partial", "qcow2");
  create_overlay(disk_ / "b.raw.nbdelta-unfinished.new", "a.raw.nbdelta-unfinished", "qcow2");
  qemu_img({"create", "-q", "-f", "qcow2", "-o", "data_file=" + (disk_ / "data"), "-b",
            "b.raw.nbdelta-unfinished.new", "-F", "qcow2", disk_ / "top.qcow2"});
  const auto files = [&] {
    return run_ok({"sh", "-c", "cd " + disk_ / "" + " && ls -i && cksum *"});
  };
  const std::string before = files();
  for (const Command& target :
       {Command{"base.raw", "--apply"}, Command{"base.raw", "--force"}, Command{"mid"},
        Command{"a.raw"}, Command{"b.raw"}, Command{"data", "--apply"}, Command{"data", "--force"},
        Command{"top.qcow2", "--force", "--format", "raw"}}) {
    Command pull{"pull", "delta:" + (disk_ / "top.qcow2") + "?lock=off&backing=" + (disk_ / "")};
    pull.insert(pull.end(), target.begin(), target.end());
    pull[2] = disk_ / target.front();
    const Outcome outcome = nbdelta(pull);
    EXPECT_EQ(outcome.status, 3) << target.front() << outcome.err;
    EXPECT_NE(outcome.err.find("is the source itself, or part of it"), std::string::npos)
        << outcome.err;
    EXPECT_EQ(files(), before) << target.front();
  }
}

class LoopDevice {
 public:
  explicit LoopDevice(const std::string& file) {
    const Outcome outcome = run({"losetup", "--find", "--show", file});
    if (outcome.status == 0)
      path_ = outcome.out.substr(0, outcome.out.find('\n'));
  }
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;
  ~LoopDevice() {
    if (!path_.empty())
      run({"losetup", "--detach", path_});
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST_F(Direct, RefusesTheDeviceOfItsSourceAsTarget) {
  const std::string raw = disk_.full_raw();
  const LoopDevice one(raw);
  const LoopDevice other(raw);
  if (one.path().empty() || other.path().empty())
    GTEST_SKIP() << "no loop devices can be had here";
  const std::string node = disk_ / "node";
  struct stat status {};
  ASSERT_EQ(::stat(one.path().c_str(), &status), 0);
  ASSERT_EQ(::mknod(node.c_str(), S_IFBLK | S_IRUSR | S_IWUSR, status.st_rdev), 0);
  using Pair = std::pair<std::string, std::string>;
  for (const auto& [source, target] : {Pair{one.path(), node}, Pair{raw, one.path()},
                                       Pair{one.path(), raw}, Pair{one.path(), other.path()}}) {
    const Outcome outcome =
        nbdelta({"pull", "delta:" + source + "?format=raw&lock=off", target, "--apply"});
    EXPECT_EQ(outcome.status, 3) << source << " to " << target;
    EXPECT_NE(outcome.err.find("is the source itself, or part of it"), std::string::npos)
        << outcome.err;
  }
}

TEST_F(Direct, RefusesWhatIsNoInstantOfTheDisk) {
  const std::string mark = disk_.image() + ".nbdelta-unfinished";
  run_ok({"sh", "-c", "echo nbd://elsewhere/ > " + mark});
  expect_refused(uri(), 1, "was not finished (see " + mark + ")");
  std::filesystem::create_symlink(disk_.image(), disk_ / "link.qcow2");
  expect_refused("delta:" + (disk_ / "link.qcow2"), 1, "was not finished");
}

/// Nobody asks a server for anything, so these would mean nothing.
TEST_F(Direct, RefusesWhatIsForRequestsToAServer) {
  for (const Command& option :
       {Command{"--depth", "8"}, Command{"--request-size", "1M"}, Command{"--bridge", "4K"},
        Command{"--retries", "5"}, Command{"--timeout", "60"}}) {
    const Outcome outcome = nbdelta({"pull", uri(), disk_ / "no.raw", option[0], option[1]});
    EXPECT_EQ(outcome.status, 2) << option[0];
    EXPECT_NE(outcome.err.find(option[0]), std::string::npos) << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(disk_ / "no.raw")) << option[0];
  }
  for (const Command& option : {Command{"--retries", "5"}, Command{"--timeout", "60"}}) {
    const Outcome outcome = nbdelta({"map", uri(), option[0], option[1]});
    EXPECT_EQ(outcome.status, 2) << option[0];
    EXPECT_NE(outcome.err.find(option[0]), std::string::npos) << outcome.err;
  }
}

TEST_F(Direct, RefusesAnImageThatIsWritten) {
  const NbdServer writer = NbdServer::qemu_nbd({"-f", "qcow2", disk_.image()});
  expect_refused(uri(), 1, "lock");
}

/// And nobody may write while it is read.
TEST_F(Direct, HoldsTheImagesLockMeanwhile) {
  Command slow = nbdelta_command({"pull", "--quiet", "--rate", "1M", uri(), "null:"});
  Background pull(slow);
  while (pull.running() && !has_open(pull.pid(), disk_.image()))
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // the lock comes after that
  EXPECT_TRUE(pull.running());
  EXPECT_NE(run({"qemu-io", "-c", "write 0 512", disk_.image()}).status, 0);
  pull.signal(SIGINT);
  const auto outcome = pull.wait(std::chrono::seconds(10));
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status, 130);
}

/// A file system of its own that copies by reference. Needs root and XFS.
class Reflinks {
 public:
  explicit Reflinks(const std::string& image) {
    run_ok({"truncate", "--size=512M", image});
    run_ok({"mkfs.xfs", "-q", "-m", "reflink=1", image});
    mounted_ = run({"mount", "-o", "loop", image, folder_.path()}).status == 0;
  }
  ~Reflinks() {
    if (mounted_)
      run({"umount", "--lazy", folder_.path()});
  }
  bool mounted() const { return mounted_; }
  std::string operator/(std::string_view name) const { return folder_ / name; }
  std::uint64_t used() const {
    const auto space = std::filesystem::space(folder_.path());
    return space.capacity - space.free;
  }
  /// Leaves so many bytes.
  void fill_up(std::uint64_t left) const {
    const std::uint64_t available = std::filesystem::space(folder_.path()).available;
    run_ok({"fallocate", "--length", std::to_string(available - left), folder_ / "filler"});
  }

 private:
  TempFolder folder_;
  bool mounted_ = false;
};

TEST_F(Direct, CopiesByReferenceWhereTheFileSystemCan) {
  const Reflinks reflinks(disk_ / "xfs");
  if (!reflinks.mounted())
    GTEST_SKIP() << "no XFS can be mounted here";
  const std::string image = reflinks / "disk.qcow2";
  create_image(image, "qcow2", 64 * kMiB);
  qemu_io(image, "qcow2", {"write -q -P 3 0 60M"});
  run_ok({"sync", "--file-system", image});
  for (const std::string target : {"copy.raw", "copy.qcow2"}) {
    const std::uint64_t before = reflinks.used();
    ASSERT_TRUE(drop_from_page_cache(image));
    pulled({"delta:" + image, reflinks / target});
    EXPECT_LT(cached_bytes(image), 16 * kMiB) << "what is shared was read";
    run_ok({"sync", "--file-system", image});
    EXPECT_LT(reflinks.used() - before, 8 * kMiB) << target;
    EXPECT_EQ(difference(reflinks / target, target.substr(5), image, "qcow2"), "");
  }
}

/// Compressed clusters are read, the plain ones between them are shared and not read.
TEST_F(Direct, CopiesByReferenceBetweenCompressedClusters) {
  const Reflinks reflinks(disk_ / "xfs");
  if (!reflinks.mounted())
    GTEST_SKIP() << "no XFS can be mounted here";
  const std::string image = reflinks / "disk.qcow2";
  create_image(image, "qcow2", 64 * kMiB);
  std::vector<std::string> writes;
  for (int begin = 0; begin < 64; begin += 4) {
    const std::string compressed = std::to_string(begin * 1024);
    const std::string plain = std::to_string(begin * 1024 + 64);
    writes.push_back("write -q -c -P 4 " + compressed + "k 64k");
    writes.push_back("write -q -P 3 " + plain + "k 4032k");
  }
  qemu_io(image, "qcow2", writes);
  run_ok({"sync", "--file-system", image});
  const std::uint64_t before = reflinks.used();
  ASSERT_TRUE(drop_from_page_cache(image));
  pulled({"delta:" + image, reflinks / "copy.raw"});
  EXPECT_LT(cached_bytes(image), 16 * kMiB) << "what is shared was read";
  run_ok({"sync", "--file-system", image});
  EXPECT_LT(reflinks.used() - before, 8 * kMiB);
  EXPECT_EQ(difference(reflinks / "copy.raw", "raw", image, "qcow2"), "");
}

/// What is copied by reference fits where it would not fit a second time.
TEST_F(Direct, NeedsNoSpaceForWhatIsCopiedByReference) {
  const Reflinks reflinks(disk_ / "xfs");
  if (!reflinks.mounted())
    GTEST_SKIP() << "no XFS can be mounted here";
  const std::string image = reflinks / "disk.qcow2";
  create_image(image, "qcow2", 64 * kMiB);
  qemu_io(image, "qcow2", {"write -q -P 3 0 60M"});
  qemu_img({"convert", "-O", "qcow2", "-c", image, reflinks / "compressed.qcow2"});
  qemu_img({"convert", "-O", "raw", image, disk_ / "elsewhere.raw"});
  run_ok({"sync", "--file-system", image});
  reflinks.fill_up(32 * kMiB);
  for (const std::string target : {"copy.raw", "copy.qcow2"}) {
    pulled({"delta:" + image, reflinks / target});
    EXPECT_EQ(difference(reflinks / target, target.substr(5), image, "qcow2"), "");
  }
  const NbdServer server = NbdServer::delta({image});
  for (const std::string& source :
       {"delta:" + (disk_ / "elsewhere.raw") + "?format=raw",
        "delta:" + (reflinks / "compressed.qcow2"), server.uri("image")}) {
    const Outcome outcome = nbdelta({"pull", source, reflinks / "no.raw"});
    EXPECT_EQ(outcome.status, 3) << source;
    EXPECT_NE(outcome.err.find("needs 60.0 MiB, but"), std::string::npos) << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(reflinks / "no.raw.partial")) << source;
  }
}

}  // namespace
}  // namespace nbdelta::testing
