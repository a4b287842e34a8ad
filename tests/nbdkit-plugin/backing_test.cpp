#include <sys/stat.h>

#include <filesystem>

#include "tests/nbdkit-plugin/plugin_test.hpp"

namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;

/// Images in "in/", which is permitted, and secrets in "out/", which is not.
class Backing : public PluginTest {
 protected:
  const std::string in = folder / "in";
  const std::string out = folder / "out";
  const std::string permit = "backing=" + in;
  const std::string overlay = in + "/overlay.qcow2";

  void SetUp() override {
    for (const std::string& path : {in, out}) {
      fs::create_directory(path);
      create_image(path + "/base.qcow2", "qcow2", kMiB);
      qemu_io(path + "/base.qcow2", "qcow2", {"write -q -P 5 0 64k"});
    }
  }

  /// The overlay with any backing name, without QEMU's looking at it.
  void make_overlay(const std::string& name, const std::string& format = "qcow2") {
    fs::remove(overlay);
    qemu_img({"create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", format, overlay, "1M"});
  }

  /// Only the layer is served, and the log says why.
  void expect_only_layer(const std::string& why) {
    const NbdServer server = NbdServer::delta({overlay, permit});
    EXPECT_THAT(refusal(server, ""), HasSubstr(why));
    EXPECT_EQ(run_ok({"nbdinfo", "--size", server.uri("layer")}), "1048576\n");
  }
};

TEST_F(Backing, RelativeAndAbsoluteNamesAreFollowed) {
  fs::create_directories(in + "/deeper/still");
  fs::copy_file(in + "/base.qcow2", in + "/deeper/still/base.qcow2");
  for (const std::string& name :
       {std::string("base.qcow2"), in + "/base.qcow2", std::string("file:base.qcow2"),
        std::string("./deeper/../base.qcow2"), std::string("deeper/still/base.qcow2")}) {
    make_overlay(name);
    const NbdServer server = NbdServer::delta({overlay, permit});
    EXPECT_EQ(difference(in + "/base.qcow2", "qcow2", server.uri(), "raw"), "") << name;
  }
}

TEST_F(Backing, SeveralFoldersMayBePermitted) {
  make_overlay("../out/base.qcow2");
  EXPECT_TRUE(try_delta({overlay, permit, "backing=" + out}).ok());
}

TEST_F(Backing, OutsideThePermittedFoldersIsNotOpened) {
  fs::create_directory(in + "-too");  // a name that begins like the permitted one
  fs::copy_file(out + "/base.qcow2", in + "-too/base.qcow2");
  for (const std::string& name :
       std::initializer_list<std::string>{"../out/base.qcow2", "../in-too/base.qcow2"}) {
    make_overlay(name);
    const std::string parent = fs::canonical(in + "/" + name).parent_path();
    expect_only_layer("is not in a permitted folder; backing=" + parent + " would permit it");
    EXPECT_TRUE(try_delta({overlay, "backing=" + parent}).ok());
  }
  make_overlay(out + "/base.qcow2");
  expect_only_layer("is not in a permitted folder");
}

/// Neither is what is outside told apart by the refusal, nor a path followed that comes back in.
TEST_F(Backing, OutsideIsNotEvenLookedAt) {
  for (const std::string& name : std::initializer_list<std::string>{
           "../out/none.qcow2", out + "/none.qcow2", "../none/base.qcow2",
           "/nonexistent/deeper/none.qcow2", "../out/base.qcow2/none"}) {
    make_overlay(name);
    expect_only_layer("is not in a permitted folder; backing=");
  }
  for (const std::string& name : std::initializer_list<std::string>{
           "../out/../in/base.qcow2", folder / "none/../in/base.qcow2"}) {
    make_overlay(name);
    expect_only_layer("is not in a permitted folder (see backing=)");
  }
  fs::create_symlink(out + "/none.qcow2", in + "/link.qcow2");
  make_overlay("link.qcow2");
  expect_only_layer("backing=" + fs::canonical(out).string() + " would permit it");
}

TEST_F(Backing, FolderIsKnownByItsOwnNames) {
  fs::create_directory_symlink(in, folder / "one");
  fs::create_directory_symlink(in, folder / "other");
  for (const std::string& name : {folder / "one/base.qcow2", in + "/base.qcow2"}) {
    make_overlay(name);
    EXPECT_TRUE(try_delta({overlay, "backing=" + folder / "one"}).ok()) << name;
    EXPECT_TRUE(try_delta({overlay, "backing=" + folder / "one/"}).ok()) << name;
  }
  make_overlay(folder / "other/base.qcow2");
  expect_only_layer("backing=" + folder / "other would permit it");
  EXPECT_TRUE(try_delta({overlay, "backing=" + folder / "other"}).ok());
  make_overlay("base.qcow2");
  EXPECT_TRUE(try_delta({folder / "other/overlay.qcow2", "backing=" + folder / "one"}).ok());
  make_overlay(folder / "one/../in/base.qcow2");  // what ".." is there only a look would tell
  expect_only_layer("is not in a permitted folder");
}

TEST_F(Backing, NamesAreFollowedAsTheKernelDoes) {
  fs::create_directory(in + "/sub");
  fs::create_symlink(in + "/base.qcow2", in + "/sub/absolute.qcow2");
  fs::create_symlink("../sub/./absolute.qcow2", in + "/sub/relative.qcow2");
  fs::create_directory_symlink("sub", in + "/linked");
  for (const char* name : {"sub/absolute.qcow2", "sub/relative.qcow2", "linked/relative.qcow2",
                           "linked/../base.qcow2", "../in//base.qcow2"}) {
    make_overlay(name);
    const NbdServer server = NbdServer::delta({overlay, permit});
    EXPECT_EQ(difference(in + "/base.qcow2", "qcow2", server.uri(), "raw"), "") << name;
  }
  fs::create_symlink("loop.qcow2", in + "/loop.qcow2");
  make_overlay("loop.qcow2");
  EXPECT_THAT(refusal({overlay, permit}), HasSubstr("Too many levels of symbolic links"));
  make_overlay("base.qcow2/../base.qcow2");
  EXPECT_THAT(refusal({overlay, permit}), HasSubstr("Not a directory"));
}

TEST_F(Backing, LinkToAFileOutsideIsNotOpened) {
  fs::create_symlink(out + "/base.qcow2", in + "/link.qcow2");
  make_overlay("link.qcow2");
  expect_only_layer("backing=" + fs::canonical(out).string() + " would permit it");
}

TEST_F(Backing, LinkToAFolderOutsideIsNotOpened) {
  fs::create_directory_symlink(out, in + "/link");
  make_overlay("link/base.qcow2");
  expect_only_layer("backing=" + fs::canonical(out).string() + " would permit it");
  make_overlay("link/../in/base.qcow2");  // and not to find the way back in
  expect_only_layer("is not in a permitted folder");
}

TEST_F(Backing, LinkWithinThePermittedFolderIsOpened) {
  fs::create_symlink("base.qcow2", in + "/link.qcow2");
  make_overlay("link.qcow2");
  EXPECT_TRUE(try_delta({overlay, permit}).ok());
  fs::create_directory_symlink(in, folder / "permitted-link");
  EXPECT_TRUE(try_delta({overlay, "backing=" + folder / "permitted-link"}).ok());
}

TEST_F(Backing, MissingOnesAreRefused) {
  make_overlay("none.qcow2");
  EXPECT_THAT(refusal({overlay, permit}),
              HasSubstr("/in/none.qcow2: cannot open: No such file or directory"));
  make_overlay("base.qcow2");
  EXPECT_THAT(refusal({overlay, "backing=" + folder / "none"}),
              HasSubstr("none: cannot look at this permitted folder: No such file"));
}

TEST_F(Backing, MustBeAFile) {
  ASSERT_EQ(::mkfifo((in + "/pipe").c_str(), 0600), 0);
  make_overlay("pipe");
  EXPECT_THAT(refusal({overlay, permit}), HasSubstr("pipe: is neither a regular file nor"));
  fs::create_directory(in + "/sub");
  make_overlay("sub");
  EXPECT_THAT(refusal({overlay, permit}), HasSubstr("sub: is neither a regular file nor"));
}

TEST_F(Backing, OtherProtocolsAreRefused) {
  for (const std::string& name : std::initializer_list<std::string>{
           "nbd:localhost:10809", "nbd://localhost/x", "json:{\"driver\":\"file\"}", "fat:/etc",
           "ssh://host/file"}) {
    make_overlay(name);
    EXPECT_THAT(refusal({overlay, permit}),
                HasSubstr("overlay.qcow2: refers to '" + name + "': only plain file names"));
  }
}

TEST_F(Backing, FormatIsNeverGuessed) {
  make_overlay("base.qcow2", "vmdk");
  EXPECT_THAT(refusal({overlay, permit}),
              HasSubstr("overlay.qcow2: backing file format: 'vmdk' is not supported"));
  make_overlay("base.qcow2");
  // Without a recorded format: the extension becomes one that may be ignored.
  const std::vector<std::byte> bytes = read_file(overlay);
  const std::string_view head(reinterpret_cast<const char*>(bytes.data()), 512);
  const std::size_t extension = head.find(std::string_view("\xe2\x79\x2a\xca", 4));
  ASSERT_NE(extension, std::string_view::npos);
  write_number<std::uint32_t>(overlay, extension, 0x11111111);
  EXPECT_THAT(refusal({overlay, permit}),
              HasSubstr("does not record the format of its backing file 'base.qcow2'"));
}

TEST_F(Backing, RawBackingFileIsNotInterpreted) {
  // A guest that writes a qcow2 header into its raw disk gains nothing.
  fs::rename(in + "/base.qcow2", in + "/base.raw");
  fs::resize_file(in + "/base.raw", kMiB);
  make_overlay("base.raw", "raw");
  const NbdServer server = NbdServer::delta({overlay, permit});
  EXPECT_EQ(difference(in + "/base.raw", "raw", server.uri(), "raw"), "");
}

TEST_F(Backing, LoopsAreRefused) {
  make_overlay("overlay.qcow2");
  EXPECT_THAT(refusal({overlay, permit}), HasSubstr("overlay.qcow2: the backing chain loops"));
  make_overlay("other.qcow2");
  qemu_img({"create", "-q", "-u", "-f", "qcow2", "-b", "overlay.qcow2", "-F", "qcow2",
            in + "/other.qcow2", "1M"});
  EXPECT_THAT(refusal({overlay, permit}), HasSubstr("other.qcow2: the backing chain loops"));
  make_overlay("link.qcow2");
  fs::create_symlink("overlay.qcow2", in + "/link.qcow2");
  EXPECT_THAT(refusal({overlay, permit}), HasSubstr("the backing chain loops"));
  fs::create_hard_link(overlay, in + "/same.qcow2");
  write_text(overlay, read_number<std::uint64_t>(overlay, header_field::kBackingOffset),
             "same.qcow2");
  EXPECT_THAT(refusal({overlay, permit}), HasSubstr("the backing chain loops"));
}

TEST_F(Backing, ChainHasAMaximum) {
  const auto name = [](int i) { return fmt::format("layer{:03}.qcow2", i); };
  const std::string model = in + "/model.qcow2";
  qemu_img({"create", "-q", "-u", "-f", "qcow2", "-o", "cluster_size=512", "-b", name(0), "-F",
            "qcow2", model, "64k"});
  const auto at = read_number<std::uint64_t>(model, header_field::kBackingOffset);
  create_image(in + "/" + name(0), "qcow2", 64 * kKiB, "cluster_size=512");
  qemu_io(in + "/" + name(0), "qcow2", {"write -q -P 9 0 64k"});
  for (int i = 1; i <= 256; ++i) {
    const std::string path = in + "/" + name(i);
    fs::copy_file(model, path);
    write_text(path, at, name(i - 1));
  }
  EXPECT_THAT(refusal({in + "/" + name(256), permit}),
              HasSubstr("layer001.qcow2: the backing chain has more than 256 layers"));
  const NbdServer server = NbdServer::delta({in + "/" + name(255), permit});
  qemu_io(server.uri(), "raw", {"read -P 9 0 64k"}, {"-r"});
  EXPECT_EQ(nbdinfo_map(server.uri()), (std::vector<NbdExtent>{{0, 64 * kKiB, kData}}));
}

TEST_F(Backing, ShorterAndLongerThanTheOverlay) {
  fs::remove(overlay);
  create_overlay(overlay, in + "/base.qcow2", "qcow2", 3 * kMiB);
  qemu_io(in + "/base.qcow2", "qcow2", {"write -q -P 6 960k 64k"});
  {
    const NbdServer server = NbdServer::delta({overlay, permit});
    EXPECT_EQ(difference(overlay, "qcow2", server.uri(), "raw"), "");
    EXPECT_EQ(nbdinfo_map(server.uri()).back(), (NbdExtent{kMiB, 2 * kMiB, kHole}));
  }
  fs::remove(overlay);
  create_overlay(overlay, in + "/base.qcow2", "qcow2", 100'000);
  const NbdServer server = NbdServer::delta({overlay, permit});
  EXPECT_EQ(difference(overlay, "qcow2", server.uri(), "raw"), "");
}

TEST_F(Backing, ExternalDataFileNeedsPermissionToo) {
  const std::string data = out + "/data.raw";
  create_image(overlay, "qcow2", kMiB, "data_file=" + data);
  qemu_io(overlay, "qcow2", {"write -q -P 3 64k 64k"});
  const std::string refused = refusal({overlay, permit});
  EXPECT_THAT(refused, HasSubstr("its external data file '" + data + "' is not in a permitted"));
  EXPECT_THAT(refused, HasSubstr("backing=" + fs::canonical(out).string() + " would permit it"));
  for (const char* direct : {"direct=off", "direct=on"}) {
    const NbdServer server = NbdServer::delta({overlay, "backing=" + out, direct});
    EXPECT_EQ(difference(overlay, "qcow2", server.uri(), "raw"), "");
  }
  fs::create_symlink(data, in + "/link.raw");
  const std::vector<std::byte> bytes = read_file(overlay);
  const std::string_view head(reinterpret_cast<const char*>(bytes.data()), 4096);
  write_text(overlay, head.find(data), in + "/link.raw/./" + std::string(8, '.'));
  EXPECT_NE(try_delta({overlay, permit}).status, 0);
}

}  // namespace
}  // namespace nbdelta::testing
