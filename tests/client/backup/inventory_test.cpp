// What QEMU 7.2 printed for guests that were started for this test, with the members that are not
// read left out.

#include "client/backup/inventory.hpp"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <map>
#include <string>

#include "client/json_text.hpp"

namespace nbdelta::client::backup {
namespace {

namespace json = boost::json;

using LocalPaths = std::map<std::string, std::string>;

/// `devices` and `nodes` are the results of query-block and query-named-block-nodes; `headers`:
/// what those of images name as their backing files.
Inventory inventory_of(const std::string& devices, const std::string& nodes,
                       const LocalPaths& local = {}, const LocalPaths& headers = {}) {
  const qapi::json::value parsed_devices = json::parse(devices);
  const qapi::json::value parsed_nodes = json::parse(nodes);
  return take_inventory(qapi::result_from<qapi::QueryBlock>(parsed_devices),
                        qapi::result_from<qapi::QueryNamedBlockNodes>(parsed_nodes),
                        {.to_local =
                             [&](const std::string& path) {
                               const auto found = local.find(path);
                               return found == local.end() ? path : found->second;
                             },
                         .backing_of = [&](const std::string& path) -> std::optional<std::string> {
                           const auto found = headers.find(path);
                           if (found == headers.end())
                             return std::nullopt;
                           return found->second;
                         }});
}

constexpr const char* kV3 = R"({"type": "qcow2", "data": {"compat": "1.1", "refcount-bits": 16}})";
constexpr const char* kV2 = R"({"type": "qcow2", "data": {"compat": "0.10", "refcount-bits": 16}})";

/// An "ImageInfo"; `below` is one, or empty.
std::string image(const std::string& filename, const std::string& format,
                  const std::string& below = {}, const std::string& backing = {},
                  const std::string& specific = kV3) {
  json::object info{{"filename", filename},
                    {"format", format},
                    {"virtual-size", 67108864},
                    {"actual-size", 200704}};
  if (!below.empty())
    info["backing-image"] = json::parse(below);
  if (!backing.empty()) {
    info["backing-filename"] = backing;
    info["full-backing-filename"] = backing;
  }
  if (format == "qcow2")
    info["format-specific"] = json::parse(specific);
  return json::serialize(info);
}

std::string node(const std::string& name, const std::string& driver, const std::string& image,
                 bool read_only = false, const std::string& bitmaps = {}, bool direct = false) {
  json::object info{{"node-name", name},
                    {"drv", driver},
                    {"file", json::parse(image).at("filename")},
                    {"ro", read_only},
                    {"backing_file_depth", 0},
                    {"write_threshold", 0},
                    {"cache", {{"no-flush", false}, {"direct", direct}, {"writeback", true}}},
                    {"image", json::parse(image)},
                    {"iops", 0}};
  if (!bitmaps.empty())
    info["dirty-bitmaps"] = json::parse(bitmaps);
  return json::serialize(info);
}

std::string device(const std::string& name, const std::string& qdev, const std::string& inserted,
                   bool removable = false) {
  json::object info{
      {"device", name}, {"removable", removable}, {"locked", false}, {"type", "unknown"}};
  if (!qdev.empty())
    info["qdev"] = qdev;
  if (!inserted.empty())
    info["inserted"] = json::parse(inserted);
  return json::serialize(info);
}

std::string list(const std::vector<std::string>& elements) {
  std::string out = "[";
  for (const std::string& element : elements)
    out += (out.size() == 1 ? "" : ", ") + element;
  return out + "]";
}

// As libvirt starts QEMU: each image is a node of its own.
TEST(Inventory, ABackingFileThatIsGivenByNodeMustBeTheOneThatTheHeaderNames) {
  constexpr const char* kName =
      R"(json:{"backing": {"driver": "qcow2", "file": {"driver": "file", "filename": "/vm/b.qcow2"}}, )"
      R"("driver": "qcow2", "file": {"driver": "file", "filename": "/vm/a.qcow2"}})";
  const std::string below = image("/vm/b.qcow2", "qcow2");
  const std::string base = image(kName, "qcow2", below, "/vm/b.qcow2");
  const std::string devices = list({device("", "vda", node("f1", "qcow2", base))});
  const std::string nodes =
      list({node("f1", "qcow2", base), node("f1-f", "file", image("/vm/a.qcow2", "file")),
            node("f2", "qcow2", below, true)});
  const Inventory taken = inventory_of(devices, nodes, {}, {{"/vm/a.qcow2", "/vm/b.qcow2"}});
  ASSERT_EQ(taken.disks.size(), 1U) << taken.left_out.at(0).reason;
  EXPECT_EQ(taken.disks[0].base_path, "/vm/a.qcow2");
  EXPECT_EQ(taken.disks[0].base_file_node, "f1-f");
  EXPECT_EQ(taken.disks[0].backing_node, "f2");
  const Inventory other = inventory_of(devices, nodes, {}, {{"/vm/a.qcow2", "/vm/c.qcow2"}});
  ASSERT_EQ(other.left_out.size(), 1U);
  EXPECT_EQ(other.left_out[0].reason,
            "QEMU has /vm/b.qcow2 below /vm/a.qcow2, and the header of that names /vm/c.qcow2");
  const Inventory none = inventory_of(devices, nodes);
  ASSERT_EQ(none.left_out.size(), 1U);
  EXPECT_EQ(none.left_out[0].reason,
            "QEMU has /vm/b.qcow2 below /vm/a.qcow2, and the header of that names nothing");
}

// As QEMU 7.2.22 printed it, but for members that are not read: -drive with automatic node names,
// our overlay on a.qcow2 on base0.qcow2, cache=none; -blockdev with a read-only drive, an empty
// cdrom.
constexpr const char* kRealDevices = R"([
{"device": "drive0", "removable": false, "inserted": {"image": {"backing-image": {
  "backing-image": {"virtual-size": 67108864, "filename": "/vm/base0.qcow2", "format": "qcow2",
    "actual-size": 200704, "format-specific": {"type": "qcow2", "data": {"compat": "1.1",
    "compression-type": "zlib", "lazy-refcounts": false, "refcount-bits": 16, "corrupt": false,
    "extended-l2": false}}},
  "backing-filename-format": "qcow2", "virtual-size": 67108864, "filename": "/vm/a.qcow2",
  "format": "qcow2", "actual-size": 200705, "format-specific": {"type": "qcow2", "data": {
  "compat": "1.1", "compression-type": "zlib", "lazy-refcounts": false, "refcount-bits": 16,
  "corrupt": false, "extended-l2": false}}, "full-backing-filename": "/vm/base0.qcow2",
  "backing-filename": "base0.qcow2"},
  "backing-filename-format": "qcow2", "virtual-size": 67108864,
  "filename": "/vm/nbdelta-0123abcd-0002-drive0.qcow2", "format": "qcow2", "actual-size": 200704,
  "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "compression-type": "zlib",
  "lazy-refcounts": false, "refcount-bits": 16, "corrupt": false, "extended-l2": false}},
  "full-backing-filename": "/vm/a.qcow2", "backing-filename": "/vm/a.qcow2"},
  "ro": false, "node-name": "#block308", "backing_file_depth": 2, "drv": "qcow2", "iops": 0,
  "write_threshold": 0, "encrypted": false,
  "cache": {"no-flush": false, "direct": true, "writeback": true},
  "file": "/vm/nbdelta-0123abcd-0002-drive0.qcow2"}, "qdev": "/machine/peripheral/vda/virtio-backend",
  "type": "unknown", "locked": false, "io-status": "ok"},
{"device": "rodrive", "removable": false, "inserted": {"image": {"virtual-size": 16777216,
  "filename": "/vm/ro.qcow2", "format": "qcow2", "actual-size": 200704, "format-specific": {
  "type": "qcow2", "data": {"compat": "0.10", "compression-type": "zlib", "refcount-bits": 16}}},
  "ro": true, "node-name": "#block1565", "backing_file_depth": 0, "drv": "qcow2",
  "write_threshold": 0, "cache": {"no-flush": false, "direct": false, "writeback": true},
  "file": "/vm/ro.qcow2"}, "qdev": "/machine/peripheral/vde/virtio-backend"},
{"device": "cd0", "removable": true, "qdev": "ide0", "locked": false, "type": "unknown",
  "tray_open": false},
{"device": "", "removable": false, "inserted": {"image": {"virtual-size": 16777216,
  "filename": "/vm/c.qcow2", "format": "qcow2", "actual-size": 212992, "format-specific": {
  "type": "qcow2", "data": {"compat": "0.10", "compression-type": "zlib", "refcount-bits": 16}}},
  "ro": false, "node-name": "disk2", "backing_file_depth": 0, "drv": "qcow2",
  "write_threshold": 0, "cache": {"no-flush": false, "direct": false, "writeback": true},
  "file": "/vm/c.qcow2"}, "qdev": "/machine/peripheral/vdc/virtio-backend"},
{"device": "", "removable": false, "inserted": {"image": {"virtual-size": 1048576,
  "filename": "json:{\"offset\": 0, \"driver\": \"raw\", \"size\": 1048576, \"file\": {\"driver\": \"file\", \"filename\": \"b2.raw\"}}",
  "format": "raw", "actual-size": 4096}, "ro": false, "node-name": "sl", "backing_file_depth": 0,
  "drv": "raw", "write_threshold": 0,
  "cache": {"no-flush": false, "direct": false, "writeback": true},
  "file": "json:{\"offset\": 0, \"driver\": \"raw\", \"size\": 1048576, \"file\": {\"driver\": \"file\", \"filename\": \"b2.raw\"}}"},
  "qdev": "/machine/peripheral/vdg/virtio-backend"}])";

constexpr const char* kRealNodes = R"([
{"image": {"virtual-size": 67108864, "filename": "/vm/base0.qcow2", "format": "qcow2",
  "actual-size": 200704}, "ro": true, "node-name": "#block728", "backing_file_depth": 0,
  "drv": "qcow2", "write_threshold": 0, "file": "/vm/base0.qcow2"},
{"image": {"virtual-size": 197120, "filename": "/vm/base0.qcow2", "format": "file",
  "actual-size": 200704}, "ro": true, "node-name": "#block622", "backing_file_depth": 0,
  "drv": "file", "write_threshold": 0, "file": "/vm/base0.qcow2"},
{"image": {"virtual-size": 197120, "filename": "/vm/a.qcow2", "format": "file",
  "actual-size": 200704}, "ro": true, "node-name": "#block424", "backing_file_depth": 0,
  "drv": "file", "write_threshold": 0, "file": "/vm/a.qcow2"},
{"image": {"backing-filename-format": "qcow2", "virtual-size": 67108864,
  "filename": "/vm/a.qcow2", "format": "qcow2", "actual-size": 200704,
  "full-backing-filename": "/vm/base0.qcow2", "backing-filename": "base0.qcow2"}, "ro": true,
  "node-name": "#block569", "backing_file_depth": 0, "drv": "qcow2", "write_threshold": 0,
  "file": "/vm/a.qcow2", "dirty-bitmaps": [
  {"name": "nbdelta-0123abcd-0002", "recording": true, "persistent": true, "busy": false,
   "granularity": 65536, "count": 131072},
  {"name": "nbdelta-0123abcd-0001", "recording": false, "persistent": true, "busy": false,
   "granularity": 65536, "count": 0, "inconsistent": true}]},
{"image": {"virtual-size": 67108864, "filename": "/vm/nbdelta-0123abcd-0002-drive0.qcow2",
  "format": "qcow2", "actual-size": 200704, "backing-filename": "/vm/a.qcow2"}, "ro": false,
  "node-name": "#block308", "backing_file_depth": 0, "drv": "qcow2", "write_threshold": 0,
  "file": "/vm/nbdelta-0123abcd-0002-drive0.qcow2"},
{"image": {"virtual-size": 16777216, "filename": "/vm/c.qcow2", "format": "qcow2",
  "actual-size": 212992}, "ro": false, "node-name": "disk2", "backing_file_depth": 0,
  "drv": "qcow2", "write_threshold": 0, "file": "/vm/c.qcow2"},
{"image": {"virtual-size": 197120, "filename": "/vm/c.qcow2", "format": "file",
  "actual-size": 212992}, "ro": false, "node-name": "pf", "backing_file_depth": 0,
  "drv": "file", "write_threshold": 0, "file": "/vm/c.qcow2"}])";

TEST(Inventory, OfARealGuest) {
  const Inventory inventory = inventory_of(kRealDevices, kRealNodes);
  ASSERT_EQ(inventory.disks.size(), 2U);

  const GuestDisk& drive = inventory.disks[0];
  EXPECT_EQ(drive.name, "drive0");
  EXPECT_EQ(drive.device, "drive0");
  EXPECT_EQ(drive.qdev, "vda");
  EXPECT_EQ(drive.top, "#block308");
  EXPECT_EQ(drive.size, 67108864U);
  EXPECT_TRUE(drive.direct);
  ASSERT_EQ(drive.overlays.size(), 1U);
  EXPECT_EQ(drive.overlays[0].node_name, "#block308");
  EXPECT_EQ(drive.overlays[0].path, "/vm/nbdelta-0123abcd-0002-drive0.qcow2");
  EXPECT_EQ(drive.overlays[0].local, "/vm/nbdelta-0123abcd-0002-drive0.qcow2");
  EXPECT_EQ(drive.overlays[0].session, (SessionId{"0123abcd", 2}));
  EXPECT_EQ(drive.base_node, "#block569");
  EXPECT_EQ(drive.base_path, "/vm/a.qcow2");
  EXPECT_EQ(drive.base_local, "/vm/a.qcow2");
  EXPECT_EQ(drive.base_format, image::Format::qcow2);
  EXPECT_TRUE(drive.can_keep_bitmaps);
  EXPECT_EQ(drive.behind_base, std::vector<std::string>{"/vm/base0.qcow2"});
  ASSERT_EQ(drive.bitmaps.size(), 2U);
  EXPECT_EQ(drive.bitmaps[0].name, "nbdelta-0123abcd-0002");
  EXPECT_TRUE(drive.bitmaps[0].recording);
  EXPECT_EQ(drive.bitmaps[0].count, 131072U);
  EXPECT_FALSE(drive.bitmaps[0].inconsistent);
  EXPECT_EQ(drive.bitmaps[1].inconsistent, true);
  for (const char* name : {"drive0", "vda", "#block308", "#block569"})
    EXPECT_TRUE(drive.is_called(name)) << name;
  EXPECT_FALSE(drive.is_called("vdb"));
  EXPECT_FALSE(drive.is_called("/vm/a.qcow2"));

  const GuestDisk& blockdev = inventory.disks[1];
  EXPECT_EQ(blockdev.name, "vdc");
  EXPECT_EQ(blockdev.top, "disk2");
  EXPECT_EQ(blockdev.base_node, "disk2");  // not pf, which has the same file open
  EXPECT_FALSE(blockdev.can_keep_bitmaps);
  EXPECT_FALSE(blockdev.direct);
  EXPECT_TRUE(blockdev.overlays.empty());
  EXPECT_TRUE(blockdev.behind_base.empty());
  EXPECT_TRUE(blockdev.bitmaps.empty());

  ASSERT_EQ(inventory.left_out.size(), 3U);
  EXPECT_EQ(inventory.left_out[0].name, "rodrive");
  EXPECT_TRUE(inventory.left_out[0].by_nature);
  EXPECT_NE(inventory.left_out[0].reason.find("read-only"), std::string::npos);
  EXPECT_EQ(inventory.left_out[1].name, "cd0");
  EXPECT_TRUE(inventory.left_out[1].by_nature);
  EXPECT_NE(inventory.left_out[1].reason.find("no medium"), std::string::npos);
  EXPECT_EQ(inventory.left_out[2].name, "vdg");
  EXPECT_FALSE(inventory.left_out[2].by_nature);
  EXPECT_NE(inventory.left_out[2].reason.find("no local file"), std::string::npos)
      << inventory.left_out[2].reason;
}

TEST(Inventory, IsEmptyForAGuestWithoutDisks) {
  const Inventory inventory = inventory_of("[]", "[]");
  EXPECT_TRUE(inventory.disks.empty());
  EXPECT_TRUE(inventory.left_out.empty());
}

TEST(Inventory, KnowsRawImages) {
  const std::string raw = image("/vm/b.raw", "raw");
  const Inventory inventory = inventory_of(list({device("drive1", "", node("#b1", "raw", raw))}),
                                           list({node("#b1", "raw", raw)}));
  ASSERT_EQ(inventory.disks.size(), 1U);
  EXPECT_EQ(inventory.disks[0].base_format, image::Format::raw);
  EXPECT_FALSE(inventory.disks[0].can_keep_bitmaps);
}

TEST(Inventory, KnowsExternalDataFilesThatQemuHasOpen) {
  const auto with_data_file = [](const std::string& name) {
    const std::string base =
        image("/vm/a.qcow2", "qcow2", {}, {},
              R"({"type": "qcow2", "data": {"compat": "1.1", "data-file": ")" + name + R"("}})");
    const std::string top = node("vda", "qcow2", base);
    return inventory_of(list({device("", "vda", top)}),
                        list({top, node("#b1", "file", image("/data/a.raw", "file"))}));
  };
  const Inventory inventory = with_data_file("/data/a.raw");
  ASSERT_EQ(inventory.disks.size(), 1U);
  EXPECT_EQ(inventory.disks[0].behind_base, std::vector<std::string>{"/data/a.raw"});
  for (const auto& [name, reason] :
       {std::pair("a.raw", "relative path"), std::pair("/data/b.raw", "uses another")}) {
    const Inventory without = with_data_file(name);
    ASSERT_EQ(without.left_out.size(), 1U) << name;
    EXPECT_FALSE(without.left_out[0].by_nature);
    EXPECT_NE(without.left_out[0].reason.find(reason), std::string::npos)
        << without.left_out[0].reason;
  }
}

TEST(Inventory, LeavesOutRemovableMedia) {
  const std::string iso = image("/vm/x.iso", "raw");
  const Inventory inventory =
      inventory_of(list({device("cd0", "ide0", node("#b1", "raw", iso, true), true)}), "[]");
  ASSERT_EQ(inventory.left_out.size(), 1U);
  EXPECT_TRUE(inventory.left_out[0].by_nature);
  EXPECT_NE(inventory.left_out[0].reason.find("removable"), std::string::npos);
}

/// But no overlay of ours, which would be left then.
TEST(Inventory, LeavesOutDisksWithoutBytes) {
  json::object empty = json::parse(image("/vm/z.qcow2", "qcow2")).as_object();
  empty["virtual-size"] = 0;
  const Inventory inventory = inventory_of(
      list({device("vdz", "vdz", node("#b1", "qcow2", json::serialize(empty)))}), "[]");
  ASSERT_EQ(inventory.left_out.size(), 1U);
  EXPECT_TRUE(inventory.left_out[0].by_nature);
  EXPECT_EQ(inventory.left_out[0].reason, "it has no bytes");
  empty["filename"] = "/vm/nbdelta-0123abcd-0001-vdz.qcow2";
  const Inventory ours = inventory_of(
      list({device("vdz", "vdz", node("#b1", "qcow2", json::serialize(empty)))}), "[]");
  for (const LeftOut& left_out : ours.left_out)
    EXPECT_FALSE(left_out.by_nature);
}

struct LeftOutRow {
  const char* name;
  std::string filename;
  std::string format;
  const char* reason;  // a part of it
};

/// So QEMU calls an overlay whose header does not name what is below it.
TEST(Inventory, AnOverlayMayBeCalledByAllItsOptions) {
  const std::string base = image("/vm/a.qcow2", "qcow2");
  const std::string overlay = image(
      R"(json:{"backing": {"driver": "qcow2", "file": {"driver": "file", "filename": "/vm/a.qcow2"}}, )"
      R"("driver": "qcow2", "file": {"driver": "file", "filename": "/vm/nbdelta-0123abcd-0002-vda.qcow2"}})",
      "qcow2", base, "/vm/nbdelta-0123abcd-0001-vda.qcow2");
  const std::string top = node("vda", "qcow2", overlay);
  const Inventory inventory =
      inventory_of(list({device("", "vda", top)}), list({top, node("base", "qcow2", base)}));
  ASSERT_EQ(inventory.disks.size(), 1U);
  EXPECT_EQ(inventory.disks[0].base_node, "base");
  ASSERT_EQ(inventory.disks[0].overlays.size(), 1U);
  EXPECT_EQ(inventory.disks[0].overlays[0].path, "/vm/nbdelta-0123abcd-0002-vda.qcow2");
  EXPECT_EQ(inventory.disks[0].overlays[0].session.number, 2U);
}

TEST(Inventory, SaysWhyADiskCannotBeTaken) {
  const LeftOutRow kRows[] = {
      {"luks", "/vm/x.luks", "luks", "luks"},
      {"vmdk", "/vm/x.vmdk", "vmdk", "vmdk"},
      {"copy_on_read_filter", "/vm/x.qcow2", "copy-on-read", "copy-on-read"},
      {"nbd", "nbd+unix:///x?socket=/run/s", "raw", "no local file"},
      {"https", "https://host/x.qcow2", "qcow2", "no local file"},
      {"json",
       R"(json:{"driver": "qcow2", "lazy-refcounts": true, "file": {"driver": "file", "filename": "/x"}})",
       "qcow2", "no local file"},
  };
  for (const LeftOutRow& row : kRows) {
    const std::string top = node("disk", row.format, image(row.filename, row.format));
    const Inventory inventory = inventory_of(list({device("", "vda", top)}), list({top}));
    EXPECT_TRUE(inventory.disks.empty()) << row.name;
    ASSERT_EQ(inventory.left_out.size(), 1U) << row.name;
    EXPECT_EQ(inventory.left_out[0].name, "vda") << row.name;
    EXPECT_FALSE(inventory.left_out[0].by_nature) << row.name;
    EXPECT_NE(inventory.left_out[0].reason.find(row.reason), std::string::npos)
        << row.name << ": " << inventory.left_out[0].reason;
  }
}

TEST(Inventory, TheNodesOfABlockdevStackHaveTheirNames) {
  // blockdev-snapshot of ours over node disk2, bitmaps in the base.
  const std::string base = image("/vm/e.qcow2", "qcow2");
  const std::string ours =
      image("/vm/nbdelta-0123abcd-0002-vdc.qcow2", "qcow2", base, "/vm/e.qcow2");
  const std::string flat = image("/vm/nbdelta-0123abcd-0002-vdc.qcow2", "qcow2", {}, "/vm/e.qcow2");
  const std::string bitmaps =
      R"([{"name": "nbdelta-0123abcd-0002", "recording": true, "persistent": true, "busy": false,
           "granularity": 65536, "count": 0}])";
  const Inventory inventory = inventory_of(
      list({device("", "/machine/peripheral/vdc/virtio-backend",
                   node("nbdelta-0123abcd-0002-1", "qcow2", ours))}),
      list({node("nbdelta-0123abcd-0002-1", "qcow2", flat), node("disk2-f", "file", base, true),
            node("disk2", "qcow2", base, true, bitmaps)}));
  ASSERT_EQ(inventory.disks.size(), 1U);
  const GuestDisk& disk = inventory.disks[0];
  EXPECT_EQ(disk.top, "nbdelta-0123abcd-0002-1");
  EXPECT_EQ(disk.base_node, "disk2");
  ASSERT_EQ(disk.overlays.size(), 1U);
  EXPECT_EQ(disk.overlays[0].node_name, "nbdelta-0123abcd-0002-1");
  ASSERT_EQ(disk.bitmaps.size(), 1U);
  EXPECT_EQ(disk.name, "vdc");  // the same as before the overlay
}

TEST(Inventory, StackedOverlaysComeTopmostFirst) {
  const std::string base = image("/vm/b.raw", "raw");
  const std::string lower =
      image("/vm/nbdelta-0123abcd-0002-vdb.qcow2", "qcow2", base, "/vm/b.raw");
  const std::string upper = image("/vm/nbdelta-0123abcd-0003-vdb.qcow2", "qcow2", lower,
                                  "/vm/nbdelta-0123abcd-0002-vdb.qcow2");
  const Inventory inventory =
      inventory_of(list({device("drive1", "", node("#b3", "qcow2", upper))}),
                   list({node("#b1", "raw", base, true), node("#b2", "qcow2", lower, true),
                         node("#b3", "qcow2", upper)}));
  ASSERT_EQ(inventory.disks.size(), 1U);
  const GuestDisk& disk = inventory.disks[0];
  ASSERT_EQ(disk.overlays.size(), 2U);
  EXPECT_EQ(disk.overlays[0].session.number, 3U);
  EXPECT_EQ(disk.overlays[0].node_name, "#b3");
  EXPECT_EQ(disk.overlays[1].session.number, 2U);
  EXPECT_EQ(disk.overlays[1].node_name, "#b2");
  EXPECT_EQ(disk.base_node, "#b1");
  EXPECT_EQ(disk.base_format, image::Format::raw);
}

TEST(Inventory, AnOverlayThatWasOpenedThroughTheCurrentLinkIsOurs) {
  const std::string base = image("/vm/b.raw", "raw");
  const std::string ours = image("/vm/nbdelta-current-vdb.qcow2", "qcow2", base, "/vm/b.raw");
  const LocalPaths local{{"/vm/nbdelta-current-vdb.qcow2", "/mnt/nbdelta-0123abcd-0003-vdb.qcow2"},
                         {"/vm/b.raw", "/mnt/b.raw"}};
  const Inventory inventory =
      inventory_of(list({device("drive1", "", node("#b2", "qcow2", ours))}),
                   list({node("#b1", "raw", base, true), node("#b2", "qcow2", ours)}), local);
  ASSERT_EQ(inventory.disks.size(), 1U);
  const GuestDisk& disk = inventory.disks[0];
  ASSERT_EQ(disk.overlays.size(), 1U);
  EXPECT_EQ(disk.overlays[0].path, "/vm/nbdelta-current-vdb.qcow2");
  EXPECT_EQ(disk.overlays[0].local, "/mnt/nbdelta-0123abcd-0003-vdb.qcow2");
  EXPECT_EQ(disk.overlays[0].session.number, 3U);
  EXPECT_EQ(disk.base_path, "/vm/b.raw");
  EXPECT_EQ(disk.base_local, "/mnt/b.raw");
}

TEST(Inventory, AnImageWithOneOfOurNamesButWithoutABackingFileIsABase) {
  const std::string alone = image("/vm/nbdelta-0123abcd-0003-vdb.qcow2", "qcow2");
  const std::string top = node("disk", "qcow2", alone);
  const Inventory inventory = inventory_of(list({device("", "vda", top)}), list({top}));
  ASSERT_EQ(inventory.disks.size(), 1U);
  EXPECT_TRUE(inventory.disks[0].overlays.empty());
  EXPECT_EQ(inventory.disks[0].base_path, "/vm/nbdelta-0123abcd-0003-vdb.qcow2");
}

TEST(Inventory, OursBelowSomebodyElsesIsNoOverlay) {
  // libvirt's snapshot over our overlay: what the guest writes to is theirs.
  const std::string base = image("/vm/b.raw", "raw");
  const std::string ours = image("/vm/nbdelta-0123abcd-0002-vdb.qcow2", "qcow2", base, "/vm/b.raw");
  const std::string theirs =
      image("/vm/snap1.qcow2", "qcow2", ours, "/vm/nbdelta-0123abcd-0002-vdb.qcow2");
  const std::string top = node("theirs", "qcow2", theirs);
  const Inventory inventory =
      inventory_of(list({device("", "vda", top)}), list({top, node("ours", "qcow2", ours, true)}));
  ASSERT_EQ(inventory.disks.size(), 1U);
  EXPECT_TRUE(inventory.disks[0].overlays.empty());
  EXPECT_EQ(inventory.disks[0].base_path, "/vm/snap1.qcow2");
  EXPECT_EQ(inventory.disks[0].behind_base,
            (std::vector<std::string>{"/vm/nbdelta-0123abcd-0002-vdb.qcow2", "/vm/b.raw"}));
}

TEST(Inventory, AnOverlayWithNothingOpenBelowItIsLeftOut) {
  const std::string ours = image("/vm/nbdelta-0123abcd-0002-vdb.qcow2", "qcow2", {}, "/vm/b.raw");
  const std::string top = node("#b2", "qcow2", ours);
  const Inventory inventory = inventory_of(list({device("drive1", "", top)}), list({top}));
  EXPECT_TRUE(inventory.disks.empty());
  ASSERT_EQ(inventory.left_out.size(), 1U);
  EXPECT_FALSE(inventory.left_out[0].by_nature);
  EXPECT_EQ(inventory.left_out[0].name, "drive1");
}

TEST(Inventory, ABaseWhoseNodeIsNotListedIsLeftOut) {
  const std::string base = image("/vm/b.raw", "raw");
  const std::string ours = image("/vm/nbdelta-0123abcd-0002-vdb.qcow2", "qcow2", base, "/vm/b.raw");
  const std::string top = node("#b2", "qcow2", ours);
  const Inventory inventory =
      inventory_of(list({device("drive1", "", top)}), list({top, node("f", "file", base)}));
  EXPECT_TRUE(inventory.disks.empty());
  ASSERT_EQ(inventory.left_out.size(), 1U);
  EXPECT_NE(inventory.left_out[0].reason.find("/vm/b.raw"), std::string::npos);
}

TEST(Inventory, DevicesThatShareANodeAreLeftOut) {
  const std::string shared = node("n", "raw", image("/vm/b.raw", "raw"));
  const std::string other = node("m", "raw", image("/vm/c.raw", "raw"));
  const Inventory inventory = inventory_of(
      list({device("", "vda", shared), device("", "vdb", shared), device("", "vdc", other)}),
      list({shared, other}));
  ASSERT_EQ(inventory.disks.size(), 1U);
  EXPECT_EQ(inventory.disks[0].name, "vdc");
  ASSERT_EQ(inventory.left_out.size(), 2U);
  for (const LeftOut& left_out : inventory.left_out) {
    EXPECT_EQ(left_out.reason, "2 devices of the guest use its node n");
    EXPECT_FALSE(left_out.by_nature);
  }
}

TEST(Inventory, ABackingFileWithoutAPlainNameIsLeftOut) {
  const std::string below = image("/vm/b.raw", "raw");
  const std::map<std::string, bool> rows{{"json:{\"driver\":\"raw\"}", true},
                                         {"nbd://host/x", true},
                                         {"json:x", true},
                                         {"/vm/b:1.raw", false},
                                         {"b.raw", false},
                                         {"file:b:1.raw", false}};
  for (const auto& [name, expected] : rows) {
    const std::string top = node("n", "qcow2", image("/vm/a.qcow2", "qcow2", below, name));
    const Inventory inventory = inventory_of(list({device("", "vda", top)}), list({top}));
    EXPECT_EQ(inventory.disks.empty(), expected) << name;
    if (!expected)
      continue;
    EXPECT_NE(inventory.left_out.at(0).reason.find("only plain file names are opened"),
              std::string::npos);
  }
}

TEST(Inventory, APathThatJsonCannotHoldIsLeftOut) {
  const std::string top = node("n", "raw", image("/vm/b.raw", "raw"));
  const Inventory inventory =
      inventory_of(list({device("", "vda", top)}), list({top}), {{"/vm/b.raw", "/B\xfcro/b.raw"}});
  ASSERT_EQ(inventory.left_out.size(), 1U);
  EXPECT_EQ(inventory.left_out[0].reason,
            "what QEMU calls /vm/b.raw has a path here that is not UTF-8");
}

struct NameRow {
  const char* device;
  const char* qdev;
  const char* node_name;
  const char* expected;
};

TEST(Inventory, NamesADiskByDeviceThenQdevThenNodeThenFile) {
  const NameRow kRows[] = {
      {"drive0", "/machine/peripheral/vda/virtio-backend", "n0", "drive0"},
      {"", "/machine/peripheral/vda/virtio-backend", "n0", "vda"},
      {"", "/machine/peripheral/vda", "n0", "vda"},
      {"", "ide0", "n0", "ide0"},
      {"", "/machine/peripheral-anon/device[0]/virtio-backend", "n0", "n0"},
      {"", "", "n0", "n0"},
      {"", "", "#block012", "root.img"},
      {"a/b", "", "n0", "a_b"},
  };
  for (const NameRow& row : kRows) {
    const std::string top = node(row.node_name, "raw", image("/vm/root.img", "raw"));
    const Inventory inventory =
        inventory_of(list({device(row.device, row.qdev, top)}), list({top}));
    ASSERT_EQ(inventory.disks.size(), 1U) << row.expected;
    EXPECT_EQ(inventory.disks[0].name, row.expected);
  }
}

TEST(Inventory, NoTwoDisksHaveOneName) {
  std::vector<std::string> devices;
  std::vector<std::string> nodes;
  for (const char* path : {"/1/d.img", "/2/d.img", "/3/d.img"}) {
    nodes.push_back(node(std::string("#") + path[1], "raw", image(path, "raw")));
    devices.push_back(device("", "", nodes.back()));
  }
  for (const char* name : {"a b", "a_b"}) {
    nodes.push_back(node(std::string("#") + name, "raw", image("/vm/x.img", "raw")));
    devices.push_back(device(name, "", nodes.back()));
  }
  const Inventory inventory = inventory_of(list(devices), list(nodes));
  std::vector<std::string> names;
  for (const GuestDisk& disk : inventory.disks)
    names.push_back(disk.name);
  EXPECT_EQ(names, (std::vector<std::string>{"d.img", "d.img-2", "d.img-3", "a_b", "a_b-2"}));
}

}  // namespace
}  // namespace nbdelta::client::backup
