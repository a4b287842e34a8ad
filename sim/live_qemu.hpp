#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sim/fake_agent.hpp"
#include "sim/fake_qemu.hpp"
#include "sim/file_host.hpp"
#include "sim/guest.hpp"
#include "sim/nbd_server.hpp"
#include "sim/record.hpp"
#include "sim/scenario.hpp"
#include "sim/unix_server.hpp"

namespace nbdelta::sim {

/// Where a live QEMU has its files.
struct LiveFolder {
  std::string path;  // absolute

  std::string qmp() const { return path + "/qmp.sock"; }
  std::string agent() const { return path + "/qga.sock"; }
  std::string record() const { return path + "/record.txt"; }
  std::string image(const ScenarioDisk& disk) const {
    return path + "/" + disk.name + "." + disk.format;
  }
  std::string below(const ScenarioDisk& disk) const {
    return path + "/" + disk.name + ".below.qcow2";
  }
};

/// The fake QEMU and its agent on real files and sockets, in real time, and the record of what its
/// guest writes. For one thread, that of `loop`.
///
/// Invariants
/// 1. Whatever the guest writes is in the record before it is in an image.
/// 2. At every instant between two of the loop's steps the disks hold what the record says.
class LiveQemu final : public Disks {
 public:
  /// Makes the images that are not there, and opens them, or the overlays that are named beside
  /// them. Throws Error; also where an overlay lies over one and nothing says that the guest runs
  /// on it, where the folder's record is of other disks, and where the images lack what an earlier
  /// run's guest had flushed; then none is made.
  LiveQemu(asio::io_context& loop, Clock& clock, LiveFolder folder, const Scenario& scenario);

  /// Begins to serve the sockets.
  void start();
  /// As QEMU at SIGTERM: everything is flushed, bitmaps are stored. The loop is of no use then.
  void end();

  std::size_t count() const override { return disks_.size(); }
  std::uint64_t granules(std::size_t disk) const override;
  std::uint64_t granule_size(std::size_t /*disk*/) const override { return kFileGranule; }
  /// A write that fails pauses the guest.
  void write(std::size_t disk, std::uint64_t granule, Fill fill, WriteDone done) override;
  void flush(std::size_t disk) override;

  FakeQemu& qemu() { return qemu_; }
  FakeAgent& agent() { return agent_; }

  /// Of QMP: one comes when the one before has left.
  std::function<void()> client_came = [] {};
  std::function<void()> client_left = [] {};

 private:
  asio::awaitable<void> serve_client(std::unique_ptr<client::qmp::Channel> channel);
  std::vector<RecordedDisk> recorded_disks() const;
  /// Adds the files to `made`.
  void create_image(const ScenarioDisk& disk, std::vector<std::string>& made);
  void open_disk(const ScenarioDisk& disk);
  void go_on_with_record(Clock& clock);
  std::uint64_t content(std::size_t disk, std::uint64_t granule);
  void record(const std::function<void(Record&)>& add);
  void record_write(const Device& device, const GuestWrite& write);
  std::optional<std::string> before_command(const qapi::Command& command);
  void after_command(const qapi::Command& command);

  asio::io_context* loop_;
  LiveFolder folder_;
  std::vector<ScenarioDisk> disks_;
  FileHost host_;
  FakeQemu qemu_;
  FakeAgent agent_;
  NbdServer nbd_;
  std::unique_ptr<UnixServer> qmp_server_;
  std::unique_ptr<UnixServer> agent_server_;
  std::optional<Record> record_;
  WriteNumber last_write_ = 0;
  std::vector<std::string> overlays_;  // of the transaction that is being carried out
};

}  // namespace nbdelta::sim
