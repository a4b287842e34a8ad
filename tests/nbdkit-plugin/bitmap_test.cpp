#include <csignal>
#include <filesystem>

#include "tests/nbdkit-plugin/plugin_test.hpp"

namespace nbdelta::testing {
namespace {

using Bitmap = PluginTest;

TEST_F(Bitmap, UnknownNameListsThoseThatThereAre) {
  create_image(disk, "qcow2", kMiB);
  {
    const NbdServer server = NbdServer::delta({disk});
    EXPECT_THAT(refusal(server, "dirty:x"), HasSubstr("no persistent bitmap 'x' (it has: none)"));
  }
  for (const char* name : {"alpha", "beta"})
    qemu_img({"bitmap", "--add", disk, name});
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_THAT(refusal(server, "dirty:x"),
              HasSubstr("no persistent bitmap 'x' (it has: alpha, beta)"));
}

TEST_F(Bitmap, DisabledOneIsServed) {
  make_changed_disk();
  qemu_img({"bitmap", "--disable", disk, "b0"});
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_EQ(nbdinfo_map(server.uri("dirty:b0")), changed_map());
}

TEST_F(Bitmap, LeftInUseByAKilledQemuIsRefused) {
  make_changed_disk();
  {
    NbdServer daemon = NbdServer::storage_daemon(
        {"--blockdev", "qcow2,node-name=d,file.driver=file,file.filename=" + disk});
    daemon.process().signal(SIGKILL);
    EXPECT_EQ(daemon.stop().status, 128 + SIGKILL);
  }
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_THAT(server.errors(), HasSubstr("bitmap 'b0' is in use"));
  EXPECT_THAT(refusal(server, "dirty:b0"), HasSubstr("bitmap 'b0' is in use: QEMU has the image "
                                                     "open, or ended without saving the bitmap"));
  EXPECT_EQ(difference(disk, "qcow2", server.uri(), "raw"), "");
}

TEST_F(Bitmap, OneThatCannotBeUsedTakesNothingFromOthers) {
  make_changed_disk();
  qemu_img({"bitmap", "--add", disk, "good"});
  // Only the first entry of the directory is marked.
  const std::vector<std::byte> bytes = read_file(disk);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::size_t flags = text.rfind("b0") - 12;  // in the entry's fixed part, before the name
  write_number<std::uint32_t>(disk, flags, read_number<std::uint32_t>(disk, flags) | 1);
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_THAT(refusal(server, "dirty:b0"), HasSubstr("is in use"));
  EXPECT_EQ(nbdinfo_map(server.uri("dirty:good")),
            (std::vector<NbdExtent>{{0, 4 * kMiB, kUnchanged}}));
}

TEST_F(Bitmap, OfAnotherSizeIsRefused) {
  create_image(disk, "qcow2", 4 * kMiB, "cluster_size=512");
  qemu_img({"bitmap", "--add", "-g", "512", disk, "b0"});
  // The disk shrinks behind the bitmap's back.
  write_number<std::uint64_t>(disk, header_field::kSize, kMiB);
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_THAT(refusal(server, "dirty:b0"),
              HasSubstr("bitmap 'b0': its table has 2 entries; a disk of 1048576 bytes with a "
                        "granularity of 512 needs 1"));
}

TEST_F(Bitmap, StaleOnesAreRefused) {
  make_changed_disk();
  write_number<std::uint64_t>(disk, header_field::kAutoclear, 0);
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_THAT(refusal(server, "dirty:b0"),
              HasSubstr("the image's bitmaps are not valid any more: a program that does not know "
                        "bitmaps wrote to it (autoclear feature bit 0)"));
  EXPECT_EQ(difference(disk, "qcow2", server.uri(), "raw"), "");
}

TEST_F(Bitmap, DirtyRefcountsServeTheImageButNoBitmap) {
  make_changed_disk("lazy_refcounts=on");
  qemu_img({"convert", "-O", "raw", disk, folder / "expected.raw"});
  write_number<std::uint64_t>(disk, header_field::kIncompatible, 1);
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_EQ(difference(folder / "expected.raw", "raw", server.uri(), "raw"), "");
  EXPECT_THAT(refusal(server, "dirty:b0"),
              HasSubstr("bitmap 'b0': the image was not closed properly (incompatible feature "
                        "bit 0): it may miss writes"));
}

TEST_F(Bitmap, NameWithANulByteIsRefused) {
  create_image(disk, "qcow2", kMiB);
  qemu_img({"bitmap", "--add", disk, "abcdefgh"});
  const std::vector<std::byte> bytes = read_file(disk);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  write_number<std::uint8_t>(disk, text.rfind("abcdefgh") + 3, 0);
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_THAT(server.errors(),
              HasSubstr("bitmap directory: the entry at byte 0 has a NUL byte in its name; no "
                        "bitmap is served"));
}

/// A bit of each granularity, the end of the disk inside one bit.
TEST_F(Bitmap, GranularitiesAndOddSizes) {
  for (const char* granularity : {"512", "4k", "64k", "1M", "2G"}) {
    std::filesystem::remove(disk);
    create_image(disk, "qcow2", 3 * kMiB + 1536, "cluster_size=4k");
    qemu_img({"bitmap", "--add", "-g", granularity, disk, "b0"});
    qemu_io(disk, "qcow2", {"write -q -P 1 1M 512", "write -q -P 1 3M 1536"});
    const NbdServer ours = NbdServer::delta({disk});
    const std::vector<NbdExtent> map = nbdinfo_map(ours.uri("dirty:b0"));
    std::vector<NbdExtent> dirty;
    {
      const NbdServer theirs = NbdServer::qemu_nbd({"-r", "-f", "qcow2", "-B", "b0", disk});
      dirty = nbdinfo_map(theirs.uri(), "qemu:dirty-bitmap:b0");
    }
    // The same, but for the split of what changed into data and zeros.
    std::vector<NbdExtent> joined;
    for (NbdExtent extent : map) {
      extent.type = extent.type == kUnchanged ? 0 : 1;
      if (!joined.empty() && joined.back().type == extent.type)
        joined.back().length += extent.length;
      else
        joined.push_back(extent);
    }
    EXPECT_EQ(joined, dirty) << granularity;
  }
}

}  // namespace
}  // namespace nbdelta::testing
