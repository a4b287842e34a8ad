#include "sim/live_qemu.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "client/backup/names.hpp"
#include "client/backup/overlay_files.hpp"
#include "client/backup/real/files.hpp"
#include "client/exit_status.hpp"
#include "client/say.hpp"
#include "image/extent_map.hpp"
#include "image/qcow2_overlay.hpp"
#include "qapi/export_commands.hpp"
#include "sim/qcow2_file_image.hpp"
#include "sim/unawaited.hpp"

namespace nbdelta::sim {

namespace fs = std::filesystem;

namespace {

// QEMU's chardevs listen so.
constexpr int kBacklog = 1;

void make_qcow2(const File& file, std::uint64_t size, const image::Backing& backing) {
  image::ExtentMap nothing;
  nothing.append(size, image::State::unchanged);
  const image::Qcow2Overlay overlay(file, nothing, 64 * 1024, backing);
  overlay.write_tables();
  overlay.finish();
}

/// Every other cluster, but no more than these, all over the disk. Returns the last number.
WriteNumber fill_half(const std::string& path, WriteNumber number) {
  constexpr std::uint64_t kMostClusters = 1024;
  ForeignGranules foreign;
  Qcow2FileImage image(File::open(path, O_RDWR), foreign);
  const std::uint64_t clusters = image.granules() / image.cluster();
  const std::uint64_t step = std::max<std::uint64_t>(2, clusters / kMostClusters);
  for (std::uint64_t cluster = 0; cluster < clusters; cluster += step)
    for (std::uint64_t i = 0; i < image.cluster(); ++i)
      image.write(cluster * image.cluster() + i, ++number);
  image.flush();
  return number;
}

/// QEMU's words do not always say which image they are of.
Node& open_node(BlockGraph& graph, const NodeOptions& options) {
  try {
    return graph.open(options);
  } catch (const BlockError& error) {
    const std::string why = error.what();
    if (why.find(options.path) != std::string::npos)
      throw;
    fail(EIO, "{}: {}", options.path, why);
  }
}

/// What the guest wrote last is in an overlay where it ended during a backup: whoever starts it
/// without that writes to what is older.
void check_no_overlay(const std::string& image) {
  namespace backup = client::backup;
  const auto files = backup::real_files();
  const std::vector<std::string> overlays = backup::overlays_over(*files, image);
  if (overlays.empty())
    return;
  files->check_unused(overlays.back());  // another run has it, and all is well
  fail(EEXIST,
       "{0}: the guest cannot be started on it: {1} lies over it and holds later writes. Run "
       "'nbdelta recover --offline {0}' first; 'nbdelta check-start {0}' says whether it is needed",
       image, overlays.back());
}

}  // namespace

LiveQemu::LiveQemu(asio::io_context& loop, Clock& clock, LiveFolder folder,
                   const Scenario& scenario)
    : loop_(&loop),
      folder_(std::move(folder)),
      disks_(scenario.disks),
      qemu_(loop.get_executor(), clock, host_, scenario.seed),
      agent_(loop.get_executor(), clock),
      nbd_(loop.get_executor(), qemu_, host_) {
  qemu_.flushes_writes = false;
  if (scenario.qemu.version == "10.0")
    qemu_.version() = kQemu10;
  qemu_.timing() = {.command = scenario.qemu.command,
                    .transaction = scenario.qemu.command,
                    .snapshot = scenario.qemu.snapshot,
                    .job_granule = std::chrono::nanoseconds(kFileGranule * 1'000'000'000 /
                                                            scenario.guest.storage.throughput),
                    .export_end = {}};
  qemu_.epoch =
      std::chrono::system_clock::now().time_since_epoch() - clock.now().time_since_epoch();
  agent_.file_systems = static_cast<std::int64_t>(disks_.size());
  agent_.command_time = scenario.agent.latency;
  agent_.thaw_time = scenario.agent.thaw * agent_.file_systems;
  // Before the images are made, which would be left in somebody else's folder.
  if (fs::exists(folder_.record()))
    check_record(folder_.record(), recorded_disks());
  std::vector<std::string> made;
  try {
    for (const ScenarioDisk& disk : disks_) {
      create_image(disk, made);
      open_disk(disk);
    }
    if (!fs::exists(folder_.record()))
      made.push_back(folder_.record());
    go_on_with_record(clock);
  } catch (...) {
    for (const std::string& path : made)
      ::unlink(path.c_str());
    throw;
  }
  qemu_.hooks().before_command = [this](const qapi::Command& command) {
    return before_command(command);
  };
  qemu_.hooks().after_command = [this](const qapi::Command& command) {
    after_command(command);
    return AnswerFate();
  };
  qemu_.hooks().before_write = [this](const Device& device, const GuestWrite& write) {
    record_write(device, write);
  };
  qemu_.hooks().aborted = [](const std::string& assertion) {
    client::say("nbdelta-sim: this QEMU aborts: {}\n", assertion);
    std::abort();
  };
  qemu_.hooks().export_in_use = [this](const std::string& id) { return nbd_.serves(id); };
  qemu_.hooks().switched = [this] { record([this](Record& to) { to.switched(overlays_); }); };
}

std::vector<RecordedDisk> LiveQemu::recorded_disks() const {
  std::vector<RecordedDisk> recorded;
  for (const ScenarioDisk& disk : disks_)
    recorded.push_back({.name = disk.name,
                        .path = folder_.image(disk),
                        .format = disk.format,
                        .granules = disk.size / kFileGranule});
  return recorded;
}

void LiveQemu::create_image(const ScenarioDisk& disk, std::vector<std::string>& made) {
  const std::string path = folder_.image(disk);
  if (fs::exists(path))
    return;
  const auto create = [&made](const std::string& name) {
    File file = File::open(name, O_RDWR | O_CREAT | O_EXCL);
    made.push_back(name);
    return file;
  };
  if (disk.format == "raw") {
    create(path).resize(disk.size);
    return;
  }
  image::Backing backing;
  if (disk.backing) {
    make_qcow2(create(folder_.below(disk)), disk.size, {});
    last_write_ = fill_half(folder_.below(disk), last_write_);
    backing.name = client::backup::base_name(folder_.below(disk));
  }
  make_qcow2(create(path), disk.size, backing);
}

void LiveQemu::open_disk(const ScenarioDisk& disk) {
  NodeOptions node{.driver = disk.format,
                   .name = disk.by_drive ? "" : disk.name,
                   .file_name = {},
                   .path = folder_.image(disk),
                   .read_only = false,
                   .no_backing = false,
                   .direct = false};
  // What a start script does after backups with --tracking overlay.
  std::ifstream current(folder_.path + "/nbdelta-current-" + disk.name + "." + disk.format);
  if (std::getline(current, node.path)) {
    node.driver = "qcow2";
  } else {
    node.path = folder_.image(disk);
    check_no_overlay(node.path);
  }
  Node& root = open_node(qemu_.graph(), node);
  if (root.image->granules() != disk.size / kFileGranule)
    fail(EINVAL, "{}: has {} bytes, but the disk {}", node.path,
         root.image->granules() * kFileGranule, disk.size);
  qemu_.graph().add_device(disk.by_drive ? disk.name : "", disk.name, root);
}

std::uint64_t LiveQemu::content(std::size_t disk, std::uint64_t granule) {
  const WriteNumber number = qemu_.graph().read(*qemu_.graph().devices()[disk].root, granule);
  if (number < ForeignGranules::kFirst)
    return number;
  GranuleBytes bytes;
  host_.fill(bytes, granule, number);
  return content_of(bytes, granule);
}

void LiveQemu::go_on_with_record(Clock& clock) {
  const std::string path = folder_.record();
  Replay before;
  const bool is_new = !fs::exists(path);
  if (is_new)
    for (const RecordedDisk& disk : recorded_disks())
      before.contents.emplace_back(disk.granules);
  else
    before.run(path);
  struct Found {
    std::size_t disk;
    std::uint64_t granule;
    std::uint64_t content;
  };
  std::vector<Found> found;
  for (std::size_t disk = 0; disk < count(); ++disk)
    for (std::uint64_t granule = 0; granule < granules(disk); ++granule) {
      const std::uint64_t now = content(disk, granule);
      if (now == before.contents[disk][granule])
        continue;
      if (!is_new && !before.may_hold(disk, granule, now))
        fail(EIO,
             "{}: at {:#x} is not what the record says: a flushed write is lost, or somebody else "
             "wrote to the image; without {} the guest starts with what there is",
             disks_[disk].name, granule * kFileGranule, path);
      found.push_back({disk, granule, now});
    }
  last_write_ = before.last_write;
  record_.emplace(path, recorded_disks(), clock);
  record_->start();
  for (const Found& each : found) {
    record_->found(each.disk, each.granule, each.content);
    if ((each.content & kForeignContent) == 0)  // no two writes have one number
      last_write_ = std::max(last_write_, static_cast<WriteNumber>(each.content));
  }
}

// ---- Sockets ----

void LiveQemu::start() {
  const auto executor = loop_->get_executor();
  qmp_server_ = std::make_unique<UnixServer>(executor, folder_.qmp(), kBacklog);
  agent_server_ = std::make_unique<UnixServer>(executor, folder_.agent(), kBacklog);
  const auto serve_qemu = [this](std::unique_ptr<client::qmp::Channel> channel) {
    return serve_client(std::move(channel));
  };
  const auto serve_agent = [this](std::unique_ptr<client::qmp::Channel> channel) {
    return agent_.serve(std::move(channel));
  };
  asio::co_spawn(*loop_, serve_one_by_one(*qmp_server_, "a QMP client", serve_qemu), kUnawaited);
  asio::co_spawn(*loop_, serve_one_by_one(*agent_server_, "an agent's client", serve_agent),
                 kUnawaited);
}

asio::awaitable<void> LiveQemu::serve_client(std::unique_ptr<client::qmp::Channel> channel) {
  client_came();
  co_await qemu_.serve(std::move(channel));
  client_left();
}

std::optional<std::string> LiveQemu::before_command(const qapi::Command& command) {
  if (command.name == qapi::NbdServerStart::kName && !qemu_.nbd_server()) {
    try {
      nbd_.listen(CommandTable::read<qapi::NbdServerStart>(command.arguments).address.data.path);
    } catch (const BlockError&) {
      return std::nullopt;  // the command will be refused for that
    } catch (const Error& error) {
      return error.what();
    }
  }
  if (command.name == qapi::Transaction::kName) {
    overlays_.clear();
    for (const auto& action : CommandTable::read<qapi::Transaction>(command.arguments).actions)
      if (action.type == qapi::BlockdevSnapshot::kName)
        overlays_.push_back(CommandTable::read<qapi::BlockdevSnapshot>(action.data).overlay);
  }
  return std::nullopt;
}

void LiveQemu::after_command(const qapi::Command& command) {
  if (command.name == qapi::NbdServerStop::kName)
    nbd_.stop();
  nbd_.drop_stale_clients();
}

void LiveQemu::end() {
  nbd_.stop();
  qmp_server_.reset();
  agent_server_.reset();
  qemu_.graph().shut_down();
  record_->end();
}

// ---- The guest ----

std::uint64_t LiveQemu::granules(std::size_t disk) const {
  return disks_[disk].size / kFileGranule;
}

void LiveQemu::write(std::size_t disk, std::uint64_t granule, Fill fill, WriteDone done) {
  const WriteNumber number = fill == Fill::zeros ? 0 : ++last_write_;
  const WriteDone finish = [this, disk, granule,
                            done = std::move(done)](const std::exception_ptr& error) {
    if (error) {
      const std::uint64_t now = content(disk, granule);
      record([&](Record& to) { to.found(disk, granule, now); });
      qemu_.stop_on_error();
    }
    done(error);
  };
  qemu_.write(qemu_.graph().devices()[disk], {granule, number}, finish);
}

/// A guest whose record ends here is of no use.
void LiveQemu::record(const std::function<void(Record&)>& add) {
  try {
    add(*record_);
  } catch (const Error& error) {
    client::say("nbdelta-sim: {}\n", error.what());
    ::_exit(client::kFailed);
  }
}

void LiveQemu::record_write(const Device& device, const GuestWrite& write) {
  const auto disk = static_cast<std::size_t>(&device - qemu_.graph().devices().data());
  record([&](Record& to) {
    if (write.number == 0)
      to.zero(disk, write.granule, 1);
    else
      to.write(disk, write.granule, 1, write.number);
  });
}

void LiveQemu::flush(std::size_t disk) {
  try {
    qemu_.graph().flush(*qemu_.graph().devices()[disk].root);
  } catch (const Error& error) {  // the guest goes on as if it had not asked
    client::say("nbdelta-sim: {} is not flushed: {}\n", disks_[disk].name, error.what());
    return;
  }
  record([&](Record& to) { to.flush(disk); });
}

}  // namespace nbdelta::sim
