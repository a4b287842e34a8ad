#include "nbdkit-plugin/dirty_map.hpp"

#include <sys/stat.h>

#include <chrono>
#include <filesystem>

#include "tests/nbdkit-plugin/plugin_test.hpp"

namespace nbdelta::testing {
namespace {

using image::State;

class DirtyMap : public PluginTest {
 protected:
  const std::string file = folder / "map.json";

  image::ExtentMap read(const std::string& json, std::uint64_t disk_size = 4096,
                        const std::string& context = {}) {
    write_file(file, json);
    return plugin::read_map_from_json(file, context, disk_size);
  }

  std::string message_of(const std::string& json, std::uint64_t disk_size = 4096,
                         const std::string& context = {}) {
    try {
      (void)read(json, disk_size, context);
    } catch (const Error& error) {
      return error.what();
    }
    return "no Error";
  }

  static std::vector<image::Extent> extents_of(const image::ExtentMap& map) {
    std::vector<image::Extent> extents;
    for (auto cursor = map.begin(); !cursor.at_end(); cursor.next())
      extents.push_back(cursor.extent());
    return extents;
  }

  /// A raw copy of the changed disk, which can hold no bitmap.
  std::string make_raw_copy() {
    qemu_img({"convert", "-O", "raw", disk, folder / "disk.raw"});
    return folder / "disk.raw";
  }
};

TEST_F(DirtyMap, TakesBitmapsAndChangedViews) {
  const std::vector<image::Extent> expected{
      {0, 512, State::data}, {512, 1024, State::unchanged}, {1536, 2560, State::data}};
  // As of a bitmap: by its context, or by its descriptions.
  const std::string bitmap =
      R"([{"offset":0,"length":512,"type":1},{"offset":512,"length":1024,"type":0},)"
      R"({"offset":1536,"length":2560,"type":1}])";
  EXPECT_EQ(extents_of(read(bitmap, 4096, "qemu:dirty-bitmap:b0")), expected);
  EXPECT_EQ(extents_of(read(R"([{"offset":0,"length":512,"type":1,"description":"dirty"},)"
                            R"({"offset":512,"length":1024,"type":0,"description":"clean"},)"
                            R"({"offset":1536,"length":2560,"type":1,"description":"dirty"}])")),
            expected);
  // As of base:allocation of a changed view; what is zero or a real hole has changed.
  EXPECT_EQ(extents_of(read(R"([{"offset":0,"length":512,"type":0},)"
                            R"({"offset":512,"length":1024,"type":1,"description":"hole"},)"
                            R"({"offset":1536,"length":512,"type":2},)"
                            R"({"offset":2048,"length":2048,"type":3}])")),
            expected);
}

TEST_F(DirtyMap, GapsCountAsChanged) {
  EXPECT_EQ(extents_of(read(R"([{"offset":512,"length":512,"type":1},)"
                            R"({"offset":2048,"length":2048,"type":1}])")),
            (std::vector<image::Extent>{{0, 512, State::data},
                                        {512, 512, State::unchanged},
                                        {1024, 1024, State::data},
                                        {2048, 2048, State::unchanged}}));
}

TEST_F(DirtyMap, UnknownMembersAreIgnored) {
  EXPECT_EQ(extents_of(read(R"( [ {"new":true,"more":null,"x":1.5,"type":1,"length":4096,)"
                            R"("offset":0,"name":"offset","y":-0.5} ] )"
                            "\n")),
            (std::vector<image::Extent>{{0, 4096, State::unchanged}}));
}

TEST_F(DirtyMap, MalformedFilesAreRefused) {
  const std::string good = R"({"offset":0,"length":4096,"type":1})";
  const struct {
    std::string json;
    std::string message;
  } rows[] = {
      {"", "incomplete"},
      {"[", "incomplete"},
      {"[" + good, "incomplete"},
      {"[" + good + ",", "incomplete"},
      {"[" + good + ",]", "after the extents of [0, 0x1000)"},
      {"xyz", "syntax error"},
      {"{}", "expected an array of extents"},
      {good, "expected an array of extents"},
      {"5", "expected an array of extents"},
      {"\"text\"", "expected an array of extents"},
      {"null", "expected an array of extents"},
      {"[[" + good + "]]", "expected an array of extents"},
      {"[" + good + ", 7]", "expected an array of extents"},
      {"[" + good + ", true]", "expected an array of extents"},
      {"[1.5, " + good + "]", "expected an array of extents"},
      {"[\"x\", " + good + "]", "expected an array of extents"},
      {"[" + good + "]x", "at byte 37: something follows the array"},
      {"[" + good + "][]", "at byte 37: something follows the array"},
      {"[" + good + "]" + std::string(300'000, ' ') + "[]", "something follows the array"},
      {R"([{"offset":{"a":1},"length":4096,"type":1}])", "expected an array of extents"},
      {R"([{"offset":-1,"length":4096,"type":1}])", "a negative number"},
      {R"([{"length":4096,"type":1}])", "lacks offset, length or type"},
      {R"([{"offset":"0","length":4096,"type":1}])", "lacks offset, length or type"},
      {R"([{"offset":0,"length":4096.0,"type":1}])", "lacks offset, length or type"},
      {R"([{"offset":0,"length":0,"type":1}])", "the extent of 0 bytes at 0x0 is empty"},
      {R"([{"offset":0,"length":1024,"type":1},{"offset":512,"length":3584,"type":0}])",
       "the extent of 3584 bytes at 0x200 is empty or not in order"},
      {R"([{"offset":2048,"length":2048,"type":1},{"offset":0,"length":2048,"type":0}])",
       "not in order"},
      {R"([{"offset":0,"length":2048,"type":1}])",
       "is of a disk of 2048 bytes; the image has 4096"},
      {R"([{"offset":0,"length":8192,"type":1}])",
       "is of a disk of 8192 bytes; the image has 4096"},
      {R"([{"offset":0,"length":18446744073709551615,"type":1}])", "more than a disk can have"},
      {R"([{"offset":18446744073709551615,"length":1,"type":1}])", "more than a disk can have"},
      {R"([{"offset":0,"length":99999999999999999999999,"type":1}])", "lacks offset"},
      {"[]", "is of a disk of 0 bytes; the image has 4096"},
      {std::string(100, '['), "expected an array of extents"},
      {"[{\"" + std::string(2000, 'k') + "\":1}]", "too"},
      {"[{\"description\":\"" + std::string(5000, 'v') + "\"}]", "too"},
      {std::string("[{\0", 3), "syntax error"},
  };
  for (const auto& row : rows) {
    const std::string message = message_of(row.json);
    EXPECT_THAT(message, HasSubstr("map=" + file + ": ")) << row.json.substr(0, 100);
    EXPECT_THAT(message, HasSubstr(row.message)) << row.json.substr(0, 100);
  }
}

TEST_F(DirtyMap, FileThatContradictsItsContextIsRefused) {
  const auto extent = [](const std::string& description) {
    return R"([{"offset":0,"length":4096,"type":1,"description":")" + description + R"("}])";
  };
  const std::string bitmap = "qemu:dirty-bitmap:b0";
  const std::string allocation = "base:allocation";
  for (const char* description : {"data", "hole", "zero", "hole,zero"}) {
    EXPECT_THAT(message_of(extent(description), 4096, bitmap),
                HasSubstr("not of the context that map-context= says"))
        << description;
    EXPECT_EQ(message_of(extent(description), 4096, allocation), "no Error") << description;
  }
  for (const char* description : {"clean", "dirty"}) {
    EXPECT_THAT(message_of(extent(description), 4096, allocation),
                HasSubstr("not of the context that map-context= says"))
        << description;
    EXPECT_EQ(message_of(extent(description), 4096, bitmap), "no Error") << description;
  }
  for (const std::string& context : {std::string(), bitmap, allocation})
    EXPECT_THAT(message_of(extent("compressed"), 4096, context),
                HasSubstr("neither of a dirty bitmap nor of base:allocation"));
}

TEST_F(DirtyMap, MustBeAFile) {
  create_image(disk, "qcow2", kMiB);
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(refusal({disk, "map=" + folder / "pipe"}), HasSubstr("neither a regular file"));
  EXPECT_THAT(refusal({disk, "map=" + folder.path()}), HasSubstr("neither a regular file"));
  EXPECT_THAT(refusal({disk, "map=" + folder / "none"}), HasSubstr("No such file"));
}

TEST_F(DirtyMap, OfAMillionExtents) {
  constexpr std::uint64_t kExtents = 1'000'000;
  std::string json = "[";
  for (std::uint64_t i = 0; i < kExtents; ++i)
    json += fmt::format(R"({}{{ "offset": {}, "length": 4096, "type": {}, "description": "{}" }})",
                        i == 0 ? "" : ",\n", i * 4096, i % 2, i % 2 == 0 ? "clean" : "dirty");
  json += "]\n";
  const auto start = std::chrono::steady_clock::now();
  const image::ExtentMap map = read(json, kExtents * 4096);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  fmt::print("{} bytes of JSON in {:.2f} s; the map takes {} bytes\n", json.size(), took.count(),
             map.memory());
  EXPECT_EQ(map.extents(State::data), kExtents / 2);
  EXPECT_EQ(map.bytes(State::unchanged), kExtents / 2 * 4096);
  EXPECT_LT(map.memory(), 8 * kMiB);
}

TEST_F(DirtyMap, FromAFileOfNbdinfo) {
  make_changed_disk();
  const std::string raw = make_raw_copy();
  for (const char* context : {"qemu:dirty-bitmap:b0", "base:allocation"}) {
    std::string json;
    if (std::string_view(context) == "base:allocation") {  // of a changed view of ours
      const NbdServer server = NbdServer::delta({disk});
      json = run_ok({"nbdinfo", "--map", "--json", server.uri("dirty:b0")});
    } else {
      const NbdServer server = NbdServer::qemu_nbd({"-r", "-f", "qcow2", "-B", "b0", disk});
      json = run_ok({"nbdinfo", fmt::format("--map={}", context), "--json", server.uri()});
    }
    write_file(file, json);
    const NbdServer server = NbdServer::delta({raw, "format=raw", "map=" + file});
    EXPECT_EQ(nbdinfo_map(server.uri("dirty")), changed_map()) << context;
    expect_reads_as(server.uri("dirty"), disk);
  }
}

TEST_F(DirtyMap, FromQemuNbd) {
  make_changed_disk();
  const std::string raw = make_raw_copy();
  const NbdServer source = NbdServer::qemu_nbd({"-r", "-f", "qcow2", "-B", "b0", disk});
  const NbdServer server = NbdServer::delta(
      {raw, "format=raw", "map=" + source.uri(), "map-context=qemu:dirty-bitmap:b0"});
  EXPECT_EQ(nbdinfo_map(server.uri("dirty")), changed_map());
}

TEST_F(DirtyMap, FromAStorageDaemonsExport) {
  make_changed_disk();
  const std::string raw = make_raw_copy();
  const NbdServer source = NbdServer::storage_daemon(
      {"--blockdev", "qcow2,node-name=d,read-only=on,file.driver=file,file.filename=" + disk,
       "--export", "nbd,id=e,node-name=d,name=d,bitmaps.0=b0"});
  const NbdServer server = NbdServer::delta(
      {raw, "format=raw", "map=" + source.uri("d"), "map-context=qemu:dirty-bitmap:b0"});
  EXPECT_EQ(nbdinfo_map(server.uri("dirty")), changed_map());
}

TEST_F(DirtyMap, FromAnotherChangedView) {
  make_changed_disk();
  const std::string raw = make_raw_copy();
  const NbdServer source = NbdServer::delta({disk});
  const NbdServer server = NbdServer::delta(
      {raw, "format=raw", "map=" + source.uri("dirty:b0"), "map-context=base:allocation"});
  EXPECT_EQ(nbdinfo_map(server.uri("dirty")), changed_map());
}

/// Larger than one request, a size that is no multiple of 4 GiB.
TEST_F(DirtyMap, FromALargeDisk) {
  create_image(disk, "qcow2", 5 * kTiB + 512);
  qemu_img({"bitmap", "--add", disk, "b0"});
  qemu_io(disk, "qcow2", {"write -q -P 1 4G 64k", "write -q -P 1 5T 512"});
  const NbdServer source = NbdServer::qemu_nbd({"-r", "-f", "qcow2", "-B", "b0", disk});
  const NbdServer server =
      NbdServer::delta({disk, "map=" + source.uri(), "map-context=qemu:dirty-bitmap:b0"});
  const std::vector<NbdExtent> expected{
      {0, 4 * kGiB, kUnchanged},
      {4 * kGiB, 64 * kKiB, kData},
      {4 * kGiB + 64 * kKiB, 5 * kTiB - 4 * kGiB - 64 * kKiB, kUnchanged},
      {5 * kTiB, 512, kData}};
  EXPECT_EQ(nbdinfo_map(server.uri("dirty")), expected);
  EXPECT_EQ(nbdinfo_map(server.uri("dirty:b0")), expected);
}

TEST_F(DirtyMap, WrongServersAreRefused) {
  make_changed_disk();
  create_image(folder / "small.qcow2", "qcow2", kMiB);
  const std::string context = "map-context=qemu:dirty-bitmap:b0";
  const NbdServer source = NbdServer::qemu_nbd({"-r", "-f", "qcow2", "-B", "b0", disk});
  EXPECT_THAT(refusal({disk, "map=" + source.uri(), "map-context=qemu:dirty-bitmap:b1"}),
              HasSubstr("has no metadata context 'qemu:dirty-bitmap:b1'"));
  EXPECT_THAT(refusal({folder / "small.qcow2", "map=" + source.uri(), context}),
              HasSubstr("is of a disk of 4194304 bytes; the image has 1048576"));
  EXPECT_THAT(refusal({disk, "map=" + source.uri("none"), context}), HasSubstr("map=nbd+unix:"));
  EXPECT_THAT(refusal({disk, "map=nbd+unix:///?socket=" + folder / "none", context}),
              HasSubstr("No such file"));
  EXPECT_THAT(refusal({disk, "map=gopher://host", context}), HasSubstr("map=gopher://host: "));
  const NbdServer sudden = NbdServer::nbdkit("memory", {"4M"}, {"--filter=noextents"});
  EXPECT_THAT(refusal({disk, "map=" + sudden.uri(), context}), HasSubstr("no metadata context"));
  EXPECT_THAT(refusal({disk, "map=" + NbdServer::delta({disk}).uri("image"),
                       "map-context=base:allocation"}),
              HasSubstr("is no changed view"));
  const NbdServer failing =
      NbdServer::nbdkit("memory", {"4M", "error-extents-rate=100%"}, {"--filter=error"});
  EXPECT_THAT(refusal({disk, "map=" + failing.uri(), "map-context=base:allocation"}),
              HasSubstr("is no changed view"));
}

}  // namespace
}  // namespace nbdelta::testing
