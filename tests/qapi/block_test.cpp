// Against what QEMU 7.2 printed, and took, when a disk was switched to an overlay and back.

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

#include "qapi/block_nodes.hpp"
#include "qapi/job_commands.hpp"
#include "qapi/snapshot_commands.hpp"

namespace nbdelta::qapi {
namespace {

TEST(QueryBlock, AJobsOwnBitmapHasNoName) {
  const auto bitmap = result_from<QueryNamedBlockNodes>(json::parse(R"([
    {"node-name": "disk0", "drv": "qcow2", "file": "d", "ro": false, "backing_file_depth": 0,
     "write_threshold": 0,
     "image": {"filename": "d", "format": "qcow2", "virtual-size": 1},
     "dirty-bitmaps": [{"recording": true, "persistent": false, "busy": true, "granularity": 65536,
                        "count": 0}]}])"))[0]
                          .bitmaps.value()[0];
  EXPECT_EQ(bitmap.name, "");
  EXPECT_TRUE(bitmap.busy);
}

TEST(QueryBlock, ReadsANamedNodeWithItsBitmaps) {
  const auto devices = result_from<QueryBlock>(json::parse(R"([
    {"io-status": "ok", "device": "", "locked": false, "removable": false, "inserted":
     {"iops_rd": 0, "detect_zeroes": "off", "image":
      {"virtual-size": 67108864, "filename": "d0.qcow2", "cluster-size": 65536, "format": "qcow2",
       "actual-size": 212992, "format-specific": {"type": "qcow2", "data": {"compat": "1.1"}},
       "dirty-flag": false},
      "iops_wr": 0, "ro": false, "node-name": "disk0", "backing_file_depth": 0, "drv": "qcow2",
      "write_threshold": 0, "dirty-bitmaps":
      [{"name": "b1", "recording": true, "persistent": true, "busy": false, "granularity": 65536,
        "count": 131072},
       {"name": "b0", "recording": false, "persistent": true, "busy": false, "granularity": 65536,
        "count": 0, "inconsistent": true}],
      "encrypted": false, "cache": {"direct": false}, "file": "d0.qcow2"},
     "qdev": "/machine/peripheral/vda/virtio-backend", "type": "unknown"}])"));
  ASSERT_EQ(devices.size(), 1u);
  const NodeInfo& node = devices[0].inserted.value();
  EXPECT_EQ(node.node_name, "disk0");
  EXPECT_EQ(node.driver, "qcow2");
  EXPECT_EQ(node.image.virtual_size, 67108864u);
  EXPECT_FALSE(node.image.backing_filename);
  ASSERT_TRUE(node.bitmaps);
  ASSERT_EQ(node.bitmaps->size(), 2u);
  EXPECT_EQ((*node.bitmaps)[0].count, 131072u);
  EXPECT_TRUE((*node.bitmaps)[0].recording);
  EXPECT_EQ((*node.bitmaps)[1].inconsistent, true);
}

TEST(QueryBlock, ReadsAnEmptyDrive) {
  const auto devices = result_from<QueryBlock>(json::parse(
      R"([{"io-status": "ok", "device": "ide0-cd0", "locked": false, "removable": true,
           "qdev": "/machine/unattached/device[16]", "tray_open": false, "type": "unknown"}])"));
  ASSERT_EQ(devices.size(), 1u);
  EXPECT_TRUE(devices[0].removable);
  EXPECT_FALSE(devices[0].inserted);
}

TEST(Transaction, HoldsTheSwitchOfADisk) {
  const Transaction transaction{{
      TransactionAction::of(BlockDirtyBitmapDisable{"disk0", "b0"}),
      TransactionAction::of(BlockDirtyBitmapAdd{
          .node = "disk0", .name = "b1", .granularity = {}, .persistent = true, .disabled = {}}),
      TransactionAction::of(BlockdevSnapshot{"disk0", "nbdelta-o"}),
  }};
  EXPECT_EQ(json::value(to_command(transaction).arguments), json::parse(
                                                                R"({"actions":[
            {"type":"block-dirty-bitmap-disable","data":{"node":"disk0","name":"b0"}},
            {"type":"block-dirty-bitmap-add","data":{"node":"disk0","name":"b1","persistent":true}},
            {"type":"blockdev-snapshot","data":{"node":"disk0","overlay":"nbdelta-o"}}]})"));
}

TEST(BlockdevAdd, TellsNoBackingFromWhatTheHeaderSays) {
  BlockdevAdd command{.driver = "qcow2",
                      .node_name = "nbdelta-o",
                      .file = json::value{{"driver", "file"}, {"filename", "ovl.qcow2"}},
                      .backing = {},
                      .read_only = {},
                      .discard = {},
                      .cache = {}};
  EXPECT_FALSE(to_command(command).arguments.contains("backing"));
  EXPECT_FALSE(arguments_of<BlockdevAdd>(to_command(command)).backing);
  command.backing = json::value(nullptr);
  EXPECT_TRUE(to_command(command).arguments.at("backing").is_null());
  EXPECT_TRUE(arguments_of<BlockdevAdd>(to_command(command)).backing);
}

TEST(Jobs, AreRead) {
  const auto jobs = result_from<QueryJobs>(json::parse(
      R"([{"current-progress": 65536, "status": "ready", "total-progress": 65536,
           "type": "commit", "id": "nbdelta-c"}])"));
  ASSERT_EQ(jobs.size(), 1u);
  EXPECT_EQ(jobs[0].id, "nbdelta-c");
  EXPECT_EQ(jobs[0].status, "ready");
  EXPECT_FALSE(jobs[0].error);
}

TEST(Events, AreRead) {
  const auto message = parse_server_message(
      R"({"timestamp": {"seconds": 1795393266, "microseconds": 346610},
          "event": "BLOCK_JOB_COMPLETED", "data": {"device": "nbdelta-c", "len": 0, "offset": 0,
          "speed": 0, "type": "commit"}})");
  EXPECT_EQ(event_data<BlockJobCompleted>(std::get<Event>(message)).device, "nbdelta-c");
}

}  // namespace
}  // namespace nbdelta::qapi
