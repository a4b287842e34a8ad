#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "client/qmp/client.hpp"
#include "sim/fake_qemu.hpp"
#include "sim/pipe.hpp"
#include "sim/store.hpp"

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kGranules = 8;

/// A guest that runs on an overlay, and a commit of it that its owner must finalize. As QEMU 7.2
/// and 10.0 were seen to do it.
class PendingCommit : public ::testing::Test {
 protected:
  PendingCommit() {
    store_.create_image("/vm/base", "qcow2", kGranules);
    store_.create_image("/vm/overlay", "qcow2", kGranules).set_backing({"/vm/base", "qcow2"});
    NodeOptions base;
    base.driver = "qcow2";
    base.name = "base";
    base.path = "/vm/base";
    NodeOptions overlay = base;
    overlay.name = "overlay";
    overlay.path = "/vm/overlay";
    overlay.no_backing = true;
    BlockGraph& graph = fake_.graph();
    graph.add_device("", "vda", graph.open(base));
    graph.open(overlay);
    graph.snapshot(graph.lookup("base"), "overlay").settle();
    write(1, 11);
    auto [mine, theirs] = make_pipe(process_, process_, "QMP");
    process_.spawn(fake_.serve(std::move(theirs)));
    qmp_ = std::make_unique<client::qmp::Client>(std::move(mine), process_.clock());
    process_.spawn([](client::qmp::Client& qmp) -> asio::awaitable<void> {
      co_await qmp.open();
      const qapi::BlockCommit commit{.job_id = "job",
                                     .device = "overlay",
                                     .base_node = "base",
                                     .top_node = std::nullopt,
                                     .backing_file = std::nullopt,
                                     .speed = std::nullopt,
                                     .auto_finalize = false,
                                     .auto_dismiss = false};
      co_await qmp.call(commit);
    }(*qmp_));
    run();
    write(2, 12);
    call(qapi::JobComplete{.id = "job"});
  }

  void run() {
    while (process_.run() || time_.advance()) {
    }
  }

  template <class T>
  void call(T command) {
    process_.spawn([](client::qmp::Client& qmp, T what) -> asio::awaitable<void> {
      co_await qmp.call(std::move(what));
    }(*qmp_, std::move(command)));
    run();
  }

  Device& device() { return fake_.graph().devices().front(); }
  void write(std::uint64_t granule, WriteNumber number) {
    fake_.write(device(), {granule, number}, [=, this](const std::exception_ptr& error) {
      EXPECT_FALSE(error);
      done_.push_back(number);
    });
  }
  WriteNumber base_holds(std::uint64_t granule) const {
    const MemoryImage& image = *store_.image("/vm/base");
    return image.held(granule) == Held::data ? image.read(granule) : 0;
  }

  VirtualTime time_;
  Store store_;
  Process process_{time_, "QEMU"};
  FakeQemu fake_{process_.executor(), process_.clock(), store_, 1};
  std::unique_ptr<client::qmp::Client> qmp_;
  std::vector<WriteNumber> done_;
};

TEST_F(PendingCommit, HoldsTheGuestBackAndTheBaseHasAll) {
  ASSERT_EQ(fake_.jobs().front().status, "pending");
  write(3, 13);
  run();
  EXPECT_EQ(done_, (std::vector<WriteNumber>{11, 12}));
  EXPECT_EQ(device().root->name, "overlay");
  store_.image("/vm/base")->lose_unflushed();
  EXPECT_EQ(base_holds(1), 11U);
  EXPECT_EQ(base_holds(2), 12U);
}

TEST_F(PendingCommit, FinalizedMovesTheGuest) {
  write(3, 13);
  write(3, 14);
  call(qapi::JobFinalize{.id = "job"});
  EXPECT_EQ(done_, (std::vector<WriteNumber>{11, 12, 13, 14}));
  EXPECT_EQ(fake_.jobs().front().status, "concluded");
  EXPECT_EQ(device().root->name, "base");
  EXPECT_EQ(base_holds(3), 14U);
}

TEST_F(PendingCommit, CancelledGoesOnOnTheOverlay) {
  write(3, 13);
  call(qapi::JobCancel{.id = "job"});
  EXPECT_EQ(done_, (std::vector<WriteNumber>{11, 12, 13}));
  EXPECT_EQ(fake_.jobs().front().error, "Operation canceled");
  EXPECT_EQ(device().root->name, "overlay");
  EXPECT_EQ(base_holds(3), 0U);
  EXPECT_EQ(fake_.graph().read(*device().root, 3), 13U);
}

TEST_F(PendingCommit, KilledLosesNothingThatWasAnswered) {
  write(3, 13);
  process_.kill();
  MemoryImage& overlay = *store_.image("/vm/overlay");
  overlay.lose_unflushed();
  store_.image("/vm/base")->lose_unflushed();
  fake_.die();
  EXPECT_EQ(done_, (std::vector<WriteNumber>{11, 12}));
  // On both: it is started on the one or the other.
  EXPECT_EQ(overlay.read(1), 11U);
  EXPECT_EQ(overlay.read(2), 12U);
  EXPECT_EQ(base_holds(1), 11U);
  EXPECT_EQ(base_holds(2), 12U);
  EXPECT_EQ(overlay.held(3), Held::nothing);  // it was held back, and nobody was told of it
}

}  // namespace
}  // namespace nbdelta::sim
