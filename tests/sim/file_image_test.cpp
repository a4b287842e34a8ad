#include "sim/qcow2_file_image.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sim/block_graph.hpp"
#include "sim/file_host.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/random.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::sim {
namespace {

using testing::Random;
using testing::TempFolder;

constexpr std::uint64_t kDisk = 24 << 20;
constexpr std::uint64_t kGranules = kDisk / kFileGranule;

/// An image that qemu-img has made, in a graph of ours, and a plain file that has what it must
/// read.
class FileImages : public ::testing::Test {
 protected:
  void create(const std::string& options, bool with_backing) {
    const std::string below = folder_ / "below.qcow2";
    testing::create_image(model(), "raw", kDisk);
    if (with_backing) {
      const std::vector<std::string> old{"write -P 7 1M 3M", "write -P 9 20M 100k",
                                         "write -z 2M 64k"};
      testing::create_image(below, "qcow2", kDisk);
      testing::qemu_io(below, "qcow2", old);
      testing::qemu_io(model(), "raw", old);
      testing::create_overlay(path(), "below.qcow2", "qcow2", 0, options);
    } else {
      testing::create_image(path(), "qcow2", kDisk, options);
    }
  }

  std::string path() const { return folder_ / "disk.qcow2"; }
  std::string model() const { return folder_ / "model.raw"; }

  void open() {
    graph_ = std::make_unique<BlockGraph>(host_, 1);
    node_ = &graph_->open({.driver = "qcow2",
                           .name = "disk",
                           .file_name = {},
                           .path = path(),
                           .read_only = false,
                           .no_backing = false,
                           .direct = false});
  }

  void write_model(std::uint64_t granule, WriteNumber number) const {
    GranuleBytes bytes;
    fill_with_stamp(bytes, granule, number);
    File::open(model(), O_WRONLY).write_at(bytes, granule * kFileGranule);
  }

  /// A write, a few neighbours, or zeros of a length that may have whole clusters.
  void write_somewhere(Random& random) {
    const std::uint64_t granule = random.below(kGranules);
    const bool zero = random.chance(30);
    const std::uint64_t count = std::min(random.between(1, zero ? 40 : 8), kGranules - granule);
    ++last_write_;
    for (std::uint64_t i = granule; i < granule + count; ++i) {
      if (zero)
        graph_->write_zero(*node_, i);
      else
        graph_->write(*node_, i, last_write_);
      write_model(i, zero ? 0 : last_write_);
      for (auto& [name, bits] : expected_bits_)
        bits[i] = true;
    }
  }

  void add_bitmap(const std::string& name) {
    node_->bitmaps.push_back({.name = name,
                              .persistent = true,
                              .recording = true,
                              .inconsistent = false,
                              .users = 0,
                              .bits = std::vector<bool>(kGranules)});
    expected_bits_[name].assign(kGranules, false);
  }

  void end() {
    graph_->shut_down();
    graph_.reset();
  }

  /// QEMU's own tools find no fault, and what must be there.
  void check() const {
    EXPECT_EQ(testing::check_complaints(path()), "");
    EXPECT_EQ(testing::difference(path(), "qcow2", model(), "raw"), "");
    for (const auto& [name, bits] : expected_bits_) {
      const auto server = testing::NbdServer::qemu_nbd({"-r", "-f", "qcow2", "-B", name, path()});
      std::vector<bool> found(kGranules);
      for (const auto& extent : testing::nbdinfo_map(server.uri(), "qemu:dirty-bitmap:" + name))
        for (std::uint64_t at = extent.offset; at < extent.offset + extent.length;
             at += kFileGranule)
          found[at / kFileGranule] = extent.type != 0;
      EXPECT_EQ(found, bits) << name;
    }
  }

  TempFolder folder_;
  FileHost host_;
  std::unique_ptr<BlockGraph> graph_;
  Node* node_ = nullptr;
  WriteNumber last_write_ = 0;
  std::map<std::string, std::vector<bool>> expected_bits_;
};

struct Layout {
  const char* name;
  const char* options;
  bool with_backing = false;
};

class Layouts : public FileImages, public ::testing::WithParamInterface<Layout> {};

TEST_P(Layouts, QemuImgFindsNoFaultAfterAnything) {
  Random random = Random::from_environment();
  create(GetParam().options, GetParam().with_backing);
  for (unsigned life = 0; life < 3; ++life) {
    open();
    add_bitmap("b" + std::to_string(life));
    const std::uint64_t steps = random.between(20, 300);
    for (std::uint64_t i = 0; i < steps; ++i) {
      write_somewhere(random);
      if (random.chance(10))
        graph_->flush(*node_);
      if (random.chance(3)) {
        graph_->set_read_only(*node_, true);
        check();
        graph_->set_read_only(*node_, false);
      }
    }
    end();
    check();
  }
}

/// What was flushed is there; of the rest some may be; nothing leads to what is not its own.
TEST_P(Layouts, ACrashLosesNoFlushedWriteAndLeavesASoundImage) {
  Random random = Random::from_environment();
  create(GetParam().options, GetParam().with_backing);
  open();
  std::vector<std::vector<WriteNumber>> may_be(kGranules);
  for (std::uint64_t i = 0; i < kGranules; ++i)
    may_be[i] = {graph_->read(*node_, i)};
  for (unsigned i = 0; i < 200; ++i) {
    const std::uint64_t granule = random.below(kGranules);
    const bool zero = random.chance(30);
    const std::uint64_t count = std::min(random.between(1, 40), kGranules - granule);
    for (std::uint64_t k = granule; k < granule + count; ++k) {
      const WriteNumber number = zero ? 0 : ++last_write_;
      if (zero)
        graph_->write_zero(*node_, k);
      else
        graph_->write(*node_, k, number);
      may_be[k].push_back(number);
    }
    if (i < 150 && random.chance(10)) {
      graph_->flush(*node_);
      for (auto& numbers : may_be)
        numbers = {numbers.back()};
    }
  }
  graph_->die();
  const testing::Outcome check = testing::run({"qemu-img", "check", "-f", "qcow2", path()});
  EXPECT_TRUE(check.status == 0 || check.status == 3) << check.out << check.err;  // 3: leaks only
  open();
  for (std::uint64_t i = 0; i < kGranules; ++i) {
    const WriteNumber now = graph_->read(*node_, i);
    ASSERT_TRUE(std::find(may_be[i].begin(), may_be[i].end(), now) != may_be[i].end())
        << "granule " << i << " has " << now;
  }
  end();
}

INSTANTIATE_TEST_SUITE_P(Of, Layouts,
                         ::testing::Values(Layout{"plain", "cluster_size=64k"},
                                           Layout{"small_clusters", "cluster_size=4k"},
                                           Layout{"large_clusters", "cluster_size=2M"},
                                           Layout{"preallocated", "preallocation=metadata"},
                                           Layout{"with_backing", "cluster_size=64k", true},
                                           Layout{"small_clusters_with_backing", "cluster_size=4k",
                                                  true}),
                         [](const auto& layout) { return layout.param.name; });

/// 4 KiB clusters: the refcount table's first cluster counts 4 GiB, and QEMU has filled that.
TEST_F(FileImages, TheRefcountTableGrows) {
  constexpr std::uint64_t kFilled = std::uint64_t{4080} << 20;
  testing::create_image(path(), "qcow2", kFilled, "cluster_size=4k,preallocation=metadata");
  testing::qemu_img({"resize", "-q", "-f", "qcow2", path(), "4200M"});
  testing::qemu_img({"create", "-q", "-f", "raw", model(), "4200M"});
  open();
  const std::uint64_t before = node_->image->allocated();
  EXPECT_LT(before, std::uint64_t{4} << 30);
  for (std::uint64_t i = 0; i < 6000; ++i) {
    graph_->write(*node_, kFilled / kFileGranule + i, ++last_write_);
    write_model(kFilled / kFileGranule + i, last_write_);
  }
  EXPECT_GT(node_->image->allocated(), std::uint64_t{4} << 30);
  end();
  EXPECT_EQ(testing::check_complaints(path()), "");
  EXPECT_EQ(testing::difference(path(), "qcow2", model(), "raw"), "");
}

/// A zero cluster of QEMU keeps its place in the file, with what was there before.
TEST_F(FileImages, AWriteIntoAZeroClusterOfQemuLeavesItsOtherGranulesZero) {
  create("cluster_size=64k", false);
  const std::vector<std::string> old{"write -P 7 1M 3M", "write -z 2M 1M", "write -z 8M 1M"};
  testing::qemu_io(path(), "qcow2", old);
  testing::qemu_io(model(), "raw", old);
  open();
  for (const std::uint64_t granule : {std::uint64_t{2} << 8, std::uint64_t{8} << 8}) {
    EXPECT_EQ(node_->image->held(granule), Held::zero);
    graph_->write(*node_, granule + 3, ++last_write_);
    write_model(granule + 3, last_write_);
    EXPECT_EQ(node_->image->held(granule), Held::data);
  }
  end();
  check();
}

TEST_F(FileImages, BitmapsOfQemuAreReadAndKept) {
  create("cluster_size=64k", false);
  testing::qemu_img({"bitmap", "--add", "-g", "64k", path(), "by-qemu"});
  testing::qemu_io(path(), "qcow2", {"write -P 1 5M 4k"});
  open();
  ASSERT_EQ(node_->bitmaps.size(), 1U);
  EXPECT_TRUE(node_->bitmaps[0].recording);
  EXPECT_EQ(node_->bitmaps[0].count(), 16U);
  EXPECT_TRUE(node_->bitmaps[0].bits[5 << 20 >> 12]);
  graph_->write(*node_, 0, ++last_write_);
  end();
  testing::qemu_io(model(), "raw", {"write -P 1 5M 4k"});
  write_model(0, last_write_);
  expected_bits_["by-qemu"].assign(kGranules, false);
  expected_bits_["by-qemu"][0] = true;
  for (std::uint64_t i = 0; i < 16; ++i)
    expected_bits_["by-qemu"][(5 << 20 >> 12) + i] = true;
  check();
}

TEST_F(FileImages, BitmapsOfACrashAreInconsistent) {
  create("cluster_size=64k", false);
  open();
  add_bitmap("b");
  end();
  open();
  graph_->write(*node_, 3, 1);
  graph_->flush(*node_);
  graph_->die();
  const auto info = testing::image_info(path(), "qcow2");
  EXPECT_EQ(info.at_pointer("/format-specific/data/bitmaps/0/flags/0").as_string(), "in-use");
  open();
  EXPECT_TRUE(node_->bitmaps.at(0).inconsistent);
  end();
}

/// While an image is open for writing QEMU does not open it; a reader forbids writing.
TEST_F(FileImages, LocksAreThoseOfQemu) {
  create("cluster_size=64k", false);
  open();
  const testing::Command write{"qemu-io", "-f", "qcow2", "-c", "write 0 4k", path()};
  const testing::Command read{"qemu-io", "-r", "-f", "qcow2", "-c", "read 0 4k", path()};
  EXPECT_FALSE(testing::run(write).ok());
  EXPECT_FALSE(testing::run(read).ok());
  graph_->set_read_only(*node_, true);
  EXPECT_FALSE(testing::run(write).ok());
  EXPECT_TRUE(testing::run(read).ok());
  {
    const auto reader = testing::NbdServer::qemu_nbd({"-r", "-f", "qcow2", path()});
    EXPECT_THROW(graph_->set_read_only(*node_, false), BlockError);
  }
  graph_->set_read_only(*node_, false);
  end();
  EXPECT_TRUE(testing::run(write).ok());
}

/// Two disks over one template: QEMU has it open twice, and either forbids writing to it.
TEST_F(FileImages, AnImageOfTwoNodesIsNotWrittenTo) {
  create("cluster_size=64k", true);
  testing::create_overlay(folder_ / "other.qcow2", "below.qcow2", "qcow2");
  open();
  Node& template_node = *node_->backing;
  graph_->open({.driver = "qcow2",
                .name = "other",
                .file_name = {},
                .path = folder_ / "other.qcow2",
                .read_only = false,
                .no_backing = false,
                .direct = false});
  EXPECT_THROW(graph_->set_read_only(template_node, false), BlockError);
  graph_->remove("other");
  graph_->set_read_only(template_node, false);
  graph_->set_read_only(template_node, true);
  end();
}

TEST_F(FileImages, WhatCannotBeWrittenToIsRefused) {
  struct Case {
    const char* options;
    const char* why;
  };
  const std::vector<Case> cases{{"cluster_size=512", "clusters"},
                                {"compat=0.10", "version 2"},
                                {"extended_l2=on", "incompatible"},
                                {"refcount_bits=1", "refcounts"}};
  for (const Case& each : cases) {
    SCOPED_TRACE(each.options);
    testing::create_image(path(), "qcow2", kDisk, each.options);
    try {
      open();
      ADD_FAILURE() << "was opened";
    } catch (const BlockError& error) {
      EXPECT_NE(std::string(error.what()).find(each.why), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace nbdelta::sim
