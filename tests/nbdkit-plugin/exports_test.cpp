#include <algorithm>
#include <array>
#include <boost/json/parse.hpp>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <map>

#include "tests/nbdkit-plugin/plugin_test.hpp"

namespace nbdelta::testing {
namespace {

namespace json = boost::json;

using Exports = PluginTest;

/// Of a description, which ends with that.
std::string without_state(std::string description) {
  const std::size_t state = description.rfind("; state ");
  EXPECT_EQ(state + std::size("; state ") - 1 + 16, description.size()) << description;
  return description.substr(0, state);
}

/// name -> description, from what the server lists.
std::map<std::string, std::string> listed(const NbdServer& server) {
  std::map<std::string, std::string> exports;
  const json::value info = json::parse(run_ok({"nbdinfo", "--list", "--json", server.uri()}, {}));
  for (const json::value& each : info.at("exports").as_array()) {
    const json::object& facts = each.as_object();
    const auto description = facts.find("description");
    exports[std::string(facts.at("export-name").as_string())] =
        description == facts.end() ? ""
                                   : without_state(std::string(description->value().as_string()));
  }
  return exports;
}

TEST_F(Exports, AreListedWithDescriptions) {
  make_changed_disk();
  qemu_img({"bitmap", "--add", "-g", "128k", disk, "name with / and ü"});
  write_file(folder / "map.json", R"([{"offset":0,"length":4194304,"type":1}])");
  const NbdServer server = NbdServer::delta({disk, "map=" + folder / "map.json"});
  const std::map<std::string, std::string> expected{
      {"", "the disk"},
      {"image", "the disk"},
      {"layer", "changed view: what the image file itself holds, not its backing file"},
      {"dirty", "changed view: what the map given by map= says"},
      {"dirty:b0", "changed view: persistent bitmap 'b0', granularity 64.0 KiB"},
      {"dirty:name with / and ü",
       "changed view: persistent bitmap 'name with / and ü', granularity 128 KiB"},
  };
  EXPECT_EQ(listed(server), expected);
  for (const auto& [name, description] : expected) {
    const json::value info = json::parse(run_ok({"nbdinfo", "--json", server.uri(name)}));
    const json::object& facts = info.at("exports").at(0).as_object();
    EXPECT_EQ(facts.at("is_read_only"), json::value(true)) << name;
    EXPECT_EQ(facts.at("can_multi_conn"), json::value(true)) << name;
    EXPECT_EQ(facts.at("export-size"), json::value(4 * kMiB)) << name;
    EXPECT_EQ(without_state(std::string(facts.at("description").as_string())), description) << name;
  }
}

/// So that a client that comes back knows whether it may go on.
TEST_F(Exports, StateIsThatOfAllFilesAndOfTheMap) {
  const std::string base = folder / "base.raw";
  const std::string map = folder / "map.json";
  create_image(base, "raw", 4 * kMiB);
  create_overlay(disk, base, "raw");
  write_file(map, R"([{"offset":0,"length":4194304,"type":1}])");
  const auto states = [&] {
    const NbdServer server =
        NbdServer::delta({disk, "backing=" + folder.path(), "map=" + map, "packed=on"});
    std::vector<std::string> found;
    for (const char* name : {"", "layer", "packed:layer", "dirty"}) {
      const json::value info = json::parse(run_ok({"nbdinfo", "--json", server.uri(name)}));
      const std::string text(info.at("exports").at(0).at("description").as_string());
      found.push_back(text.substr(text.rfind(' ')));
    }
    EXPECT_EQ(found[0], found[1]);
    EXPECT_EQ(found[1], found[2]);
    EXPECT_NE(found[0], found[3]);
    return found;
  };
  const auto first = states();
  EXPECT_EQ(states(), first);
  qemu_io(base, "raw", {"write -q -P 7 0 64k"});
  const auto second = states();
  EXPECT_NE(second[0], first[0]);
  write_file(map, R"([{"offset":0,"length":4194304,"type":0}])");
  const auto third = states();
  EXPECT_EQ(third[0], second[0]);
  EXPECT_NE(third[3], second[3]);
  qemu_io(disk, "qcow2", {"write -q -P 7 0 64k"});
  EXPECT_NE(states()[0], third[0]);
}

TEST_F(Exports, SayWhatChanged) {
  make_changed_disk();
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_EQ(nbdinfo_map(server.uri("dirty:b0")), changed_map());
  const std::uint64_t step = 64 * kKiB;
  const std::vector<NbdExtent> image{{0, 4 * step, kData},        {4 * step, step, kZero},
                                     {5 * step, 3 * step, kData}, {8 * step, step, kZero},
                                     {9 * step, 7 * step, kData}, {kMiB, 3 * kMiB, kHole}};
  EXPECT_EQ(nbdinfo_map(server.uri()), image);
  EXPECT_EQ(nbdinfo_map(server.uri("image")), image);
  for (const char* name : {"", "image", "layer", "dirty:b0"})
    expect_reads_as(server.uri(name), disk);
}

TEST_F(Exports, LayerIsWhatTheOverlayHolds) {
  const std::string base = folder / "base.raw";
  create_image(base, "raw", 4 * kMiB);
  qemu_io(base, "raw", {"write -q -P 1 0 2M"});
  create_overlay(disk, base, "raw");
  qemu_io(disk, "qcow2", {"write -q -P 2 64k 64k", "write -q -z 1M 128k", "discard -q 1536k 64k"},
          {"-d", "unmap"});
  const NbdServer server = NbdServer::delta({disk, "backing=" + folder.path()});
  const std::uint64_t step = 64 * kKiB;
  EXPECT_EQ(nbdinfo_map(server.uri("layer")), (std::vector<NbdExtent>{
                                                  {0, step, kUnchanged},
                                                  {step, step, kData},
                                                  {2 * step, 14 * step, kUnchanged},
                                                  {kMiB, 2 * step, kZero},
                                                  {18 * step, 6 * step, kUnchanged},
                                                  {24 * step, step, kZero},
                                                  {25 * step, 39 * step, kUnchanged},
                                              }));
  expect_reads_as(server.uri("layer"), disk);
}

TEST_F(Exports, RawImageIsALayerOfItsOwn) {
  const std::string raw = folder / "disk.raw";
  write_file(raw, "");
  std::filesystem::resize_file(raw, 4 * kMiB);
  qemu_io(raw, "raw", {"write -q -P 1 1M 1M"});
  const NbdServer server = NbdServer::delta({raw, "format=raw"});
  EXPECT_EQ(
      nbdinfo_map(server.uri()),
      (std::vector<NbdExtent>{{0, kMiB, kHole}, {kMiB, kMiB, kData}, {2 * kMiB, 2 * kMiB, kHole}}));
  EXPECT_EQ(
      nbdinfo_map(server.uri("layer")),
      (std::vector<NbdExtent>{{0, kMiB, kZero}, {kMiB, kMiB, kData}, {2 * kMiB, 2 * kMiB, kZero}}));
}

TEST_F(Exports, UnknownOnesAreRefused) {
  make_changed_disk();
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_THAT(refusal(server, "nothing"), HasSubstr("there is no export 'nothing'"));
  EXPECT_THAT(refusal(server, "dirty"), HasSubstr("needs map="));
  EXPECT_THAT(refusal(server, "dirty:"), HasSubstr("has no persistent bitmap '' (it has: b0)"));
  EXPECT_THAT(refusal(server, std::string(4000, 'x')), HasSubstr("there is no export"));
}

TEST_F(Exports, WithoutItsBackingFileOnlyTheLayerIsServed) {
  const std::string base = folder / "base.qcow2";
  create_image(base, "qcow2", 4 * kMiB);
  create_overlay(disk, base, "qcow2");
  qemu_io(disk, "qcow2", {"write -q -P 2 64k 64k"});
  qemu_img({"bitmap", "--add", disk, "b0"});
  const NbdServer server = NbdServer::delta({disk});
  const std::string help = "backing=" + folder.path() + " would permit it";
  EXPECT_THAT(server.errors(), HasSubstr(help));
  EXPECT_THAT(server.errors(), HasSubstr("only the export 'layer' is served"));
  for (const char* name : {"", "image", "dirty", "dirty:b0"})
    EXPECT_THAT(refusal(server, name), HasSubstr(help)) << name;
  EXPECT_EQ(listed(server).size(), 1U);
  EXPECT_EQ(nbdinfo_map(server.uri("layer")),
            (std::vector<NbdExtent>{{0, 64 * kKiB, kUnchanged},
                                    {64 * kKiB, 64 * kKiB, kData},
                                    {128 * kKiB, 4 * kMiB - 128 * kKiB, kUnchanged}}));
  // What the layer holds can be read; the rest cannot, and is not taken for zeros.
  qemu_io(server.uri("layer"), "raw", {"read -P 2 64k 64k"}, {"-r"});
  EXPECT_NE(run({"qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", server.uri("layer")}).status, 0);
  EXPECT_THAT(server.errors(), HasSubstr("guest offset 0x0 is in a backing file"));
}

TEST_F(Exports, MoreBitmapsThanNbdkitLists) {
  // 10,100 empty bitmaps: a directory and one table, by hand; qemu-img would take minutes.
  create_image(disk, "qcow2", 64 * kKiB, "cluster_size=512");
  qemu_img({"bitmap", "--add", disk, "b0"});
  constexpr std::uint32_t kBitmaps = 10'100;
  constexpr std::uint64_t kCluster = 512;
  const std::uint64_t directory = round_up(std::filesystem::file_size(disk), kCluster);
  const std::uint64_t entry_size = 32;
  const std::uint64_t tables = round_up(directory + kBitmaps * entry_size, kCluster);
  std::vector<std::byte> bytes(tables + kBitmaps * kCluster - directory);
  for (std::uint32_t i = 0; i < kBitmaps; ++i) {
    const struct {
      be64 table;
      be32 entries, flags;
      std::uint8_t type, granularity_bits;
      be16 name_size;
      be32 extra;
      char name[8];
    } entry{tables + i * kCluster, 1, 2, 1, 16, 8, 0, {}};
    std::memcpy(bytes.data() + i * entry_size, &entry, sizeof entry);
    const std::string name = fmt::format("b{:07}", i);
    std::memcpy(bytes.data() + i * entry_size + 24, name.data(), 8);
  }
  File::open(disk, O_WRONLY).write_at(bytes, directory);
  const std::vector<std::byte> head = read_file(disk);
  const std::array<std::byte, 8> extension{std::byte{0x23}, std::byte{0x85}, std::byte{0x28},
                                           std::byte{0x75}, std::byte{0},    std::byte{0},
                                           std::byte{0},    std::byte{24}};
  const auto found = std::search(head.begin(), head.end(), extension.begin(), extension.end());
  ASSERT_NE(found, head.end());
  const auto at = static_cast<std::uint64_t>(found - head.begin()) + 8;
  write_number<std::uint32_t>(disk, at, kBitmaps);
  write_number<std::uint64_t>(disk, at + 8, kBitmaps * entry_size);
  write_number<std::uint64_t>(disk, at + 16, directory);

  const auto start = std::chrono::steady_clock::now();
  const NbdServer server = NbdServer::delta({disk});
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  EXPECT_EQ(run_ok({"nbdinfo", "--size", server.uri(fmt::format("dirty:b{:07}", kBitmaps - 1))}),
            "65536\n");
  const std::string list = run_ok({"nbdinfo", "--list", "--no-content", server.uri()});
  EXPECT_THAT(list, HasSubstr("dirty:b0000001"));
}

}  // namespace
}  // namespace nbdelta::testing
