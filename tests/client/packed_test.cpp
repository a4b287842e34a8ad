// Pulls from the packed export beside a changed view, compared with those that do without.

#include <fcntl.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <utility>

#include "tests/client/changed_disk.hpp"
#include "tests/client/client_run.hpp"

namespace nbdelta::testing {
namespace {

class PackedPull : public ::testing::Test {
 protected:
  static std::uint64_t number(const boost::json::value& result, const char* member) {
    return result.at(member).to_number<std::uint64_t>();
  }
  std::string direct() const { return "delta:" + disk_.image() + "?bitmap=b0"; }
  /// The bytes came packed: no gap was read along, and no request was shorter than it must be.
  void expect_packed(const boost::json::value& result, std::uint64_t request) const {
    EXPECT_EQ(number(result, "bytes_read"), number(result, "bytes_written"));
    EXPECT_EQ(number(result, "requests"),
              (number(result, "bytes_written") + request - 1) / request);
  }
  void expect_equal(const std::string& file, const std::string& format) const {
    EXPECT_EQ(difference(file, format, disk_.image(), "qcow2"), "") << file;
  }

  Random random_ = Random::from_environment();
  ChangedDisk disk_{random_};
};

TEST_F(PackedPull, IntoEveryKindOfTarget) {
  const NbdServer server = NbdServer::delta({disk_.image()});
  const std::string source = server.uri("dirty:b0");
  const std::string overlay = disk_ / "inc.qcow2";
  expect_packed(pulled({source, overlay, "--base", "full.qcow2"}), 256 * kKiB);
  EXPECT_EQ(check_complaints(overlay), "");
  expect_equal(overlay, "qcow2");

  const std::string applied = disk_ / "applied.raw";
  std::filesystem::copy_file(disk_.full_raw(), applied);
  expect_packed(pulled({source, applied, "--apply"}), 256 * kKiB);
  expect_equal(applied, "raw");

  {
    const NbdServer to = NbdServer::nbdkit("file", {disk_.full_raw()});
    expect_packed(pulled({source, to.uri()}), 256 * kKiB);
  }
  expect_equal(disk_.full_raw(), "raw");
}

TEST_F(PackedPull, IsWhatADirectOneIs) {
  const NbdServer server = NbdServer::delta({disk_.image()});
  for (const char* request : {"64K", "256K", "1M"}) {
    const auto packed = pulled({server.uri("dirty:b0"), "null:", "--request-size", request});
    const auto direct = pulled({this->direct(), "null:"});
    for (const char* member : {"disk_size", "extents", "bytes_written", "bytes_zeroed"})
      EXPECT_EQ(packed.at(member), direct.at(member)) << member;
  }
}

TEST_F(PackedPull, OfAnOverlaysLayer) {
  qemu_img({"create", "-f", "qcow2", "-b", disk_.image(), "-F", "qcow2", disk_ / "over.qcow2"});
  qemu_io(disk_ / "over.qcow2", "qcow2",
          {"write -q -P 7 1M 100k", "write -q -z 2M 64k", "write -q -P 9 20M 1M"});
  const NbdServer server =
      NbdServer::delta({disk_ / "over.qcow2", "backing=" + std::string(disk_ / "")});
  const std::string copy = disk_ / "copy.raw";
  qemu_img({"convert", "-O", "raw", disk_.image(), copy});
  expect_packed(pulled({server.uri("layer"), copy, "--apply"}), 256 * kKiB);
  EXPECT_EQ(difference(copy, "raw", disk_ / "over.qcow2", "qcow2"), "");
}

/// A target in larger blocks wants what lies around the changes too.
TEST_F(PackedPull, IsLeftWhereTheTargetWantsMore) {
  const std::string image = disk_ / "fine.qcow2";
  create_image(image, "qcow2", 4 * kMiB);
  qemu_io(image, "qcow2", {"write -q -P 5 0 4M"});
  qemu_img({"convert", "-O", "qcow2", image, disk_ / "fine-full.qcow2"});
  qemu_img({"bitmap", "--add", "-g", "512", image, "b0"});
  qemu_io(image, "qcow2", {"write -q -P 6 512 512", "write -q -P 7 1M 1k", "write -q -P 8 3M 64k"});
  const NbdServer server = NbdServer::delta({image});
  const auto result =
      pulled({server.uri("dirty:b0"), disk_ / "fine-inc.qcow2", "--base", "fine-full.qcow2"});
  EXPECT_GT(number(result, "bytes_written"), 512U + 1024U + 64 * kKiB);
  EXPECT_EQ(difference(disk_ / "fine-inc.qcow2", "qcow2", image, "qcow2"), "");
}

/// A server that knows the view, but no packed export: it serves what it has under every name.
TEST_F(PackedPull, IsNotTakenFromAServerThatIgnoresNames) {
  const NbdServer server = NbdServer::delta({disk_.image()});
  const NbdServer proxy = NbdServer::nbdkit("nbd", {"uri=" + server.uri("dirty:b0")});
  pulled({proxy.uri("dirty:b0"), disk_.full_raw(), "--apply", "--full"});
  expect_equal(disk_.full_raw(), "raw");
  EXPECT_EQ(nbdinfo_map(proxy.uri("dirty:b0")), nbdinfo_map(server.uri("dirty:b0")));
}

TEST_F(PackedPull, OfPartOfTheDiskBehindAFilter) {
  const NbdServer server =
      NbdServer::delta({disk_.image(), "offset=1M", "range=2M"}, {"--filter=offset"});
  const std::string part = disk_ / "part.raw";
  qemu_img({"convert", "-O", "raw", disk_.image(), disk_ / "now.raw"});
  const auto bytes_of = [&](const std::string& file, std::uint64_t offset) {
    std::vector<std::byte> bytes(2 * kMiB);
    (void)File::open(file, O_RDONLY).read_at(bytes, offset);
    return bytes;
  };
  run_ok({"dd", "if=" + disk_.full_raw(), "of=" + part, "bs=1M", "skip=1", "count=2"});
  pulled({server.uri("dirty:b0"), part, "--apply"});
  EXPECT_TRUE(bytes_of(part, 0) == bytes_of(disk_ / "now.raw", kMiB));
}

TEST_F(PackedPull, MapIsWhatNbdinfoSays) {
  const NbdServer server = NbdServer::delta({disk_.image()});
  const auto map =
      boost::json::parse(run_ok(nbdelta_command({"map", "--json", server.uri("dirty:b0")})));
  std::vector<NbdExtent> ours;
  for (const auto& extent : map.as_array())
    ours.push_back({extent.at("offset").to_number<std::uint64_t>(),
                    extent.at("length").to_number<std::uint64_t>(),
                    extent.at("type").to_number<std::uint64_t>()});
  EXPECT_EQ(ours, nbdinfo_map(server.uri("dirty:b0")));
}

}  // namespace
}  // namespace nbdelta::testing
