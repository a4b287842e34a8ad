#include "sim/fake_qemu.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "qapi/framing.hpp"

namespace nbdelta::sim {

namespace json = qapi::json;
using client::qmp::ChannelLost;
using qapi::Nothing;

FakeQemu::FakeQemu(asio::any_io_executor executor, Clock& clock, ImageHost& host,
                   std::uint64_t seed)
    : executor_(std::move(executor)), clock_(&clock), graph_(host, seed) {
  add_commands();
}

void FakeQemu::die() {
  dead_ = true;
  jobs_.clear();
  exports_.clear();
  held_.clear();
  nbd_server_.reset();
  graph_.die();
}

// ---- Monitors ----

asio::awaitable<void> FakeQemu::serve(std::unique_ptr<client::qmp::Channel> channel) {
  monitors_.emplace_back();
  Monitor& monitor = monitors_.back();
  monitor.client = std::make_shared<Outbox>(executor_, std::move(channel));
  try {
    co_await converse(monitor);
  } catch (const ChannelLost&) {
  }
  monitors_.remove_if([&](const Monitor& each) { return &each == &monitor; });
}

asio::awaitable<void> FakeQemu::converse(Monitor& monitor) {
  const qapi::Greeting greeting{
      .major = version_.major, .minor = version_.minor, .micro = version_.micro, .package = {}};
  monitor.client->send(qapi::to_line(greeting) + "\r\n");
  qapi::Framer framer;
  while (true) {
    while (auto line = framer.next()) {
      const std::string reply = co_await answer(monitor, std::move(*line));
      if (dead_)
        co_return;
      monitor.client->send(reply + "\r\n");
    }
    framer.feed(co_await monitor.client->channel().receive());
  }
}

Clock::Duration FakeQemu::time_of(const std::string& command) const {
  return command == qapi::Transaction::kName ? timing_.transaction : timing_.command;
}

asio::awaitable<std::string> FakeQemu::answer(Monitor& monitor, std::string line) {
  qapi::ErrorReply error;
  qapi::Command command;
  try {
    command = qapi::parse_command(line);
    json::value value = co_await carry_out(monitor, command);
    co_return qapi::to_line(qapi::Return{.value = std::move(value), .id = command.id});
  } catch (const qapi::CommandError& refused) {
    error = {refused.error_class(), refused.description(), std::nullopt};
  } catch (const BlockError& refused) {
    error = {refused.error_class(), refused.what(), command.id};
  }
  co_return qapi::to_line(error);
}

asio::awaitable<json::value> FakeQemu::carry_out(Monitor& monitor, qapi::Command command) {
  co_await clock_->wait(time_of(command.name));
  if (dead_)
    throw ChannelLost(ECONNRESET, "QEMU is gone");
  if (!monitor.negotiated) {
    if (command.name != "qmp_capabilities")
      throw BlockError("Expecting capabilities negotiation with 'qmp_capabilities'",
                       "CommandNotFound");
    monitor.negotiated = true;
    co_return json::object();
  }
  if (const auto refusal = hooks_.before_command(command))
    throw BlockError(*refusal);
  json::value value = commands_.execute(command);
  hooks_.step(command.name);
  const AnswerFate fate = hooks_.after_command(command);
  if (fate.delay.count() != 0)
    co_await clock_->wait(fate.delay);
  if (fate.disconnect)
    throw ChannelLost(ECONNRESET, "the connection was cut");
  co_return value;
}

void FakeQemu::emit(const std::string& name, json::object data) {
  const std::int64_t now =
      std::chrono::duration_cast<std::chrono::microseconds>(clock_->now().time_since_epoch())
          .count();
  const std::string line = qapi::to_line(qapi::Event{.name = name,
                                                     .data = std::move(data),
                                                     .seconds = now / 1000000,
                                                     .microseconds = now % 1000000});
  for (Monitor& monitor : monitors_) {
    if (monitor.negotiated)
      monitor.client->send(line + "\r\n");
  }
}

// ---- The guest ----

bool FakeQemu::drained(const Device& device) const {
  return std::any_of(jobs_.begin(), jobs_.end(),
                     [&](const Job& job) { return job.drains && job.active == device.root; });
}

void FakeQemu::write(Device& device, GuestWrite write, WriteDone done) {
  if (drained(device))
    held_.push_back({&device, write, std::move(done)});
  else
    write_now(device, write, done);
}

void FakeQemu::write_now(Device& device, const GuestWrite& write, const WriteDone& done) {
  std::exception_ptr error;
  try {
    if (write.number == 0)
      graph_.write_zero(*device.root, write.granule);
    else
      graph_.write(*device.root, write.granule, write.number);
    mark_for_jobs(*device.root, write.granule);
    graph_.flush(*device.root);
    tell_of_threshold(*device.root);
  } catch (const Error&) {
    error = std::current_exception();
  }
  done(error);
}

/// Those of devices that are drained no more.
void FakeQemu::write_held_back() {
  std::deque<HeldWrite> held;
  held.swap(held_);
  for (HeldWrite& each : held)
    write(*each.device, each.write, std::move(each.done));
}

void FakeQemu::mark_for_jobs(const Node& node, std::uint64_t granule) {
  for (Job& job : jobs_)
    if (!job.intermediate && job.top == &node &&
        (job.status == "running" || job.status == "ready")) {
      job.dirty.insert(granule);
      start_copying(job);
    }
}

void FakeQemu::tell_of_threshold(Node& node) {
  if (!node.file->grown_beyond)
    return;
  emit(std::string(qapi::BlockWriteThresholdEvent::kName),
       {{"node-name", node.file->name},
        {"amount-exceeded", *node.file->grown_beyond},
        {"write-threshold", 0}});
  node.file->grown_beyond.reset();
}

const Export* FakeQemu::find_export(const std::string& name) const {
  for (const auto& [id, each] : exports_)
    if (each.name == name)
      return &each;
  return nullptr;
}

// ---- Commands ----

void FakeQemu::add_commands() {
  using namespace qapi;
  commands_.add<QueryBlock>([this](const QueryBlock&) {
    std::vector<DeviceInfo> infos;
    for (const Device& device : graph_.devices()) {
      DeviceInfo info;
      info.device = device.name;
      info.qdev = "/machine/peripheral/" + device.id + "/virtio-backend";
      info.removable = device.removable;
      if (device.root != nullptr)
        info.inserted = describe(graph_, *device.root, false);
      infos.push_back(std::move(info));
    }
    return infos;
  });
  commands_.add<QueryNamedBlockNodes>([this](const QueryNamedBlockNodes& command) {
    std::vector<NodeInfo> infos;
    for (const auto& node : graph_.nodes())
      infos.push_back(describe(graph_, *node, command.flat.value_or(false)));
    std::reverse(infos.begin(), infos.end());
    return infos;
  });
  commands_.add<QueryStatus>([this](const QueryStatus&) {
    return RunState{.running = run_state_ == "running", .status = run_state_};
  });
  commands_.add<QueryMigrate>([this](const QueryMigrate&) {
    MigrationInfo info;
    if (!migration_.empty())
      info.status = migration_;
    return info;
  });
  commands_.add<QueryCommands>([this](const QueryCommands&) {
    std::vector<CommandInfo> infos;
    for (std::string& name : commands_.names())
      infos.push_back({std::move(name)});
    return infos;
  });
  commands_.add<BlockdevAdd>([this](const BlockdevAdd& command) { return blockdev_add(command); });
  commands_.add<BlockdevReopen>(
      [this](const BlockdevReopen& command) { return blockdev_reopen(command); });
  commands_.add<BlockdevDel>([this](const BlockdevDel& command) {
    graph_.remove(command.node_name);
    return Nothing{};
  });
  commands_.add<Transaction>([this](const Transaction& command) { return transaction(command); });
  commands_.add<BlockDirtyBitmapAdd>([this](const BlockDirtyBitmapAdd& command) {
    add_bitmap(command);
    return Nothing{};
  });
  commands_.add<BlockDirtyBitmapRemove>(
      [this](const BlockDirtyBitmapRemove& command) { return remove_bitmap(command); });
  commands_.add<BlockDirtyBitmapEnable>([this](const BlockDirtyBitmapEnable& command) {
    set_recording(command.node, command.name, true);
    return Nothing{};
  });
  commands_.add<BlockDirtyBitmapDisable>([this](const BlockDirtyBitmapDisable& command) {
    set_recording(command.node, command.name, false);
    return Nothing{};
  });
  commands_.add<BlockDirtyBitmapMerge>([this](const BlockDirtyBitmapMerge& command) {
    merge_bitmaps(command);
    return Nothing{};
  });
  commands_.add<BlockCommit>([this](const BlockCommit& command) { return block_commit(command); });
  commands_.add<ChangeBackingFile>(
      [this](const ChangeBackingFile& command) { return change_backing_file(command); });
  commands_.add<BlockSetWriteThreshold>(
      [this](const BlockSetWriteThreshold& command) { return set_write_threshold(command); });
  commands_.add<QueryJobs>([this](const QueryJobs&) {
    std::vector<JobInfo> infos;
    for (const Job& job : jobs_) {
      JobInfo info;
      info.id = job.id;
      info.type = "commit";
      info.status = job.status;
      info.current_progress = job.done * job.granule_size;
      info.total_progress = job.length * job.granule_size;
      if (!job.error.empty())
        info.error = job.error;
      infos.push_back(std::move(info));
    }
    return infos;
  });
  commands_.add<JobComplete>([this](const JobComplete& command) {
    Job& job = find_job(command.id, "complete");
    if (job.status != "ready")
      refuse("Job '{}' in state '{}' cannot accept command verb 'complete'", job.id, job.status);
    job.complete = true;
    start_copying(job);
    return Nothing{};
  });
  commands_.add<JobFinalize>([this](const JobFinalize& command) {
    Job& job = find_job(command.id, "finalize");
    if (job.status != "pending")
      refuse("Job '{}' in state '{}' cannot accept command verb 'finalize'", job.id, job.status);
    conclude(job, "");
    return Nothing{};
  });
  commands_.add<JobDismiss>([this](const JobDismiss& command) {
    Job& job = find_job(command.id, "dismiss");
    if (job.status != "concluded")
      refuse("Job '{}' in state '{}' cannot accept command verb 'dismiss'", job.id, job.status);
    set_status(job, "null");
    jobs_.remove_if([&](const Job& each) { return &each == &job; });
    return Nothing{};
  });
  commands_.add<JobCancel>([this](const JobCancel& command) {
    Job& job = find_job(command.id, "cancel");
    if (job.status == "concluded")
      refuse("Job '{}' in state '{}' cannot accept command verb 'cancel'", job.id, job.status);
    job.cancelled = true;
    if (job.status == "ready" || job.status == "pending")
      conclude(job, "Operation canceled");
    return Nothing{};
  });
  commands_.add<NbdServerStart>([this](const NbdServerStart& command) {
    if (nbd_server_)
      refuse("NBD server already running");
    nbd_server_ = command.address.data.path;
    return Nothing{};
  });
  commands_.add<NbdServerStop>([this](const NbdServerStop&) {
    if (!nbd_server_)
      refuse("NBD server not running");
    while (!exports_.empty())
      export_del(exports_.begin()->first);
    nbd_server_.reset();
    return Nothing{};
  });
  commands_.add<BlockExportAdd>(
      [this](const BlockExportAdd& command) { return export_add(command); });
  commands_.add<BlockExportDel>(
      [this](const BlockExportDel& command) { return export_del(command.id); });
  commands_.add<QueryBlockExports>([this](const QueryBlockExports&) {
    std::vector<ExportInfo> infos;
    for (const auto& [id, each] : exports_)
      infos.push_back({.id = id, .type = "nbd", .node_name = each.node->name});
    return infos;
  });
}

Nothing FakeQemu::blockdev_add(const qapi::BlockdevAdd& command) {
  NodeOptions options{.driver = command.driver,
                      .name = command.node_name,
                      .file_name = {},
                      .path = {},
                      .read_only = command.read_only.value_or(false),
                      .no_backing = command.backing && command.backing->is_null(),
                      .direct = false};
  if (command.driver != "qcow2" && command.driver != "raw")
    refuse("Unknown driver '{}'", command.driver);
  const json::object* file = command.file.if_object();
  if (file == nullptr || !file->contains("filename"))
    refuse("Parameter 'file' is missing");
  options.path = std::string(file->at("filename").as_string());
  if (const auto* name = file->if_contains("node-name"))
    options.file_name = std::string(name->as_string());
  if (const auto* cache = file->if_contains("cache"))
    options.direct = cache->at("direct").as_bool();
  graph_.open(options);
  return {};
}

/// Of all that QEMU can do here, what nbdelta uses: another read-only.
Nothing FakeQemu::blockdev_reopen(const qapi::BlockdevReopen& command) {
  for (const json::object& options : command.options) {
    const std::string name(options.at("node-name").as_string());
    Node* node = graph_.find(name);
    if (node == nullptr)
      refuse("Failed to find node with node-name='{}'", name);
    const auto* read_only = options.if_contains("read-only");
    graph_.set_read_only(*node, read_only != nullptr && read_only->as_bool());
  }
  return {};
}

Nothing FakeQemu::transaction(const qapi::Transaction& command) {
  std::vector<std::function<void()>> undo;
  bool switches = false;
  try {
    for (const qapi::TransactionAction& action : command.actions) {
      undo.push_back(act(action));
      switches |= action.type == qapi::BlockdevSnapshot::kName;
    }
  } catch (const BlockError&) {
    for (auto it = undo.rbegin(); it != undo.rend(); ++it)
      if (*it)
        (*it)();
    throw;
  }
  if (switches)
    hooks_.switched();
  return {};
}

/// Returns what undoes it.
std::function<void()> FakeQemu::act(const qapi::TransactionAction& action) {
  using namespace qapi;
  if (action.type == BlockDirtyBitmapAdd::kName)
    return add_bitmap(CommandTable::read<BlockDirtyBitmapAdd>(action.data));
  if (action.type == BlockDirtyBitmapDisable::kName) {
    const auto disable = CommandTable::read<BlockDirtyBitmapDisable>(action.data);
    return set_recording(disable.node, disable.name, false);
  }
  if (action.type == BlockDirtyBitmapEnable::kName) {
    const auto enable = CommandTable::read<BlockDirtyBitmapEnable>(action.data);
    return set_recording(enable.node, enable.name, true);
  }
  if (action.type == BlockDirtyBitmapMerge::kName)
    return merge_bitmaps(CommandTable::read<BlockDirtyBitmapMerge>(action.data));
  if (action.type == BlockdevSnapshot::kName) {
    const auto snapshot = CommandTable::read<BlockdevSnapshot>(action.data);
    return graph_.snapshot(graph_.lookup(snapshot.node), graph_.lookup(snapshot.overlay));
  }
  refuse("Parameter 'type' does not accept value '{}'", action.type);
}

std::function<void()> FakeQemu::add_bitmap(const qapi::BlockDirtyBitmapAdd& command) {
  Node& node = graph_.lookup(command.node);
  if (node.find_bitmap(command.name) != nullptr)
    refuse("Bitmap already exists: {}", command.name);
  if (command.name.empty())
    refuse("Bitmap name cannot be empty");
  if (command.persistent.value_or(false) && node.driver != "qcow2")
    refuse("Persistent bitmaps are not supported by this block driver");
  node.bitmaps.push_back({.name = command.name,
                          .persistent = command.persistent.value_or(false),
                          .recording = !command.disabled.value_or(false),
                          .inconsistent = false,
                          .users = 0,
                          .bits = std::vector<bool>(node.image->granules())});
  return [&node, name = command.name] {
    std::erase_if(node.bitmaps, [&](const Bitmap& bitmap) { return bitmap.name == name; });
  };
}

Bitmap& FakeQemu::usable_bitmap(const std::string& node_name, const std::string& name) {
  Node& node = graph_.lookup(node_name);
  Bitmap* bitmap = node.find_bitmap(name);
  if (bitmap == nullptr)
    refuse("Dirty bitmap '{}' not found", name);
  if (bitmap->busy())
    refuse("Bitmap '{}' is currently in use by another operation and cannot be used", name);
  if (bitmap->inconsistent)
    refuse("Bitmap '{}' is inconsistent and cannot be used", name);
  return *bitmap;
}

std::function<void()> FakeQemu::set_recording(const std::string& node, const std::string& name,
                                              bool recording) {
  Bitmap& bitmap = usable_bitmap(node, name);
  const bool before = std::exchange(bitmap.recording, recording);
  return [this, node, name, before] { graph_.lookup(node).find_bitmap(name)->recording = before; };
}

Nothing FakeQemu::remove_bitmap(const qapi::BlockDirtyBitmapRemove& command) {
  Node& node = graph_.lookup(command.node);
  Bitmap* bitmap = node.find_bitmap(command.name);
  if (bitmap == nullptr)
    refuse("Dirty bitmap '{}' not found", command.name);
  if (bitmap->busy())
    refuse("Bitmap '{}' is currently in use by another operation and cannot be used", command.name);
  if (bitmap->persistent && node.read_only)
    refuse("Bitmap '{}' is readonly and cannot be modified", command.name);
  std::erase_if(node.bitmaps, [&](const Bitmap& each) { return each.name == command.name; });
  return {};
}

std::function<void()> FakeQemu::merge_bitmaps(const qapi::BlockDirtyBitmapMerge& command) {
  Node& node = graph_.lookup(command.node);
  Bitmap& target = usable_bitmap(command.node, command.target);
  if (target.persistent && node.read_only)
    refuse("Bitmap '{}' is readonly and cannot be modified", command.target);
  std::vector<bool> merged = target.bits;
  for (const std::string& name : command.bitmaps) {
    const Bitmap& source = usable_bitmap(command.node, name);
    for (std::size_t i = 0; i < merged.size(); ++i)
      if (source.bits[i])
        merged[i] = true;
  }
  std::swap(target.bits, merged);
  return [&node, name = command.target, before = std::move(merged)] {
    node.find_bitmap(name)->bits = before;
  };
}

Nothing FakeQemu::change_backing_file(const qapi::ChangeBackingFile& command) {
  Node& active = graph_.lookup(command.device);
  if (!graph_.users_of(active).empty())
    refuse("Need a root block node");
  Node* node = graph_.find(command.image_node);
  if (node == nullptr)
    refuse("Cannot find device='' nor node-name='{}'", command.image_node);
  if (node->backing == nullptr)
    refuse("not allowing backing file change on an image without a backing file");
  if (node != &active && !graph_.is_below(*node, active))
    refuse("'{}' and image file are not in the same chain", command.device);
  if (!active.job.empty())
    refuse("Node '{}' is busy: block device is in use by block job: commit", command.device);
  const bool read_only = node->read_only;
  graph_.set_read_only(*node, false);
  node->image->set_backing({command.backing_file, node->driver});
  graph_.set_read_only(*node, read_only);
  return {};
}

Nothing FakeQemu::set_write_threshold(const qapi::BlockSetWriteThreshold& command) {
  Node* node = graph_.find(command.node_name);
  if (node == nullptr)
    refuse("Device '{}' not found", command.node_name);
  node->write_threshold = command.write_threshold;
  return {};
}

Nothing FakeQemu::export_add(const qapi::BlockExportAdd& command) {
  if (!nbd_server_)
    refuse("NBD server not running");
  if (exports_.count(command.id) != 0)
    refuse("Block export id '{}' is already in use", command.id);
  Node* node = graph_.find(command.node_name);
  if (node == nullptr)
    refuse("Failed to find node with node-name='{}'", command.node_name);
  for (const std::string& name : command.bitmaps) {
    Bitmap* bitmap = nullptr;
    for (Node* each = node; each != nullptr && bitmap == nullptr; each = each->backing)
      bitmap = each->find_bitmap(name);
    if (bitmap == nullptr)
      refuse("Bitmap '{}' is not found", name);
    if (bitmap->recording && node->read_only && node->bitmaps.empty())
      refuse("Enabled bitmap '{}' incompatible with readonly export", name);
    ++bitmap->users;
  }
  exports_[command.id] = {
      .id = command.id, .name = command.name, .node = node, .bitmaps = command.bitmaps};
  return {};
}

Nothing FakeQemu::export_del(const std::string& id) {
  const auto found = exports_.find(id);
  if (found == exports_.end())
    refuse("Export '{}' is not found", id);
  for (const std::string& name : found->second.bitmaps)
    for (Node* each = found->second.node; each != nullptr; each = each->backing)
      if (Bitmap* bitmap = each->find_bitmap(name)) {
        --bitmap->users;
        break;
      }
  exports_.erase(found);
  emit("BLOCK_EXPORT_DELETED", {{"id", id}});
  return {};
}

}  // namespace nbdelta::sim
