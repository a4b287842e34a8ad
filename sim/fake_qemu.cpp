#include "sim/fake_qemu.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "sim/qmp_input.hpp"
#include "sim/transaction.hpp"

namespace nbdelta::sim {

namespace json = qapi::json;
using client::qmp::ChannelLost;
using qapi::Nothing;

namespace {

struct QmpCapabilities {
  std::optional<std::vector<std::string>> enable;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("enable", enable);
  }
};

constexpr std::string_view kNegotiate = "qmp_capabilities";
constexpr std::string_view kOutOfBand = "oob";  // the only capability

/// QEMU knows the elements of the list by no name (qapi/qapi-visit-core.c, input_type_enum).
void check_capabilities(const std::vector<std::string>& wanted) {
  for (const std::string& each : wanted)
    if (each != kOutOfBand)
      refuse("Parameter 'null' does not accept value '{}'", each);
}

/// Whether the command came as `exec-oob` (QEMU qapi/qmp-dispatch.c, qmp_dispatch_check_obj): it
/// gets the form of any other then.
bool take_out_of_band(json::value& message) {
  json::object* object = message.if_object();
  json::value* name = object == nullptr ? nullptr : object->if_contains("exec-oob");
  if (name == nullptr)
    return false;
  if (object->contains("execute"))
    refuse("QMP input member 'execute' clashes with 'exec-oob'");
  if (!name->is_string())
    refuse("QMP input member 'exec-oob' must be a string");
  json::value taken = std::move(*name);
  object->erase("exec-oob");
  object->emplace("execute", std::move(taken));
  return true;
}

}  // namespace

FakeQemu::FakeQemu(asio::any_io_executor executor, Clock& clock, ImageHost& host,
                   std::uint64_t seed)
    : executor_(std::move(executor)), clock_(&clock), graph_(host, seed) {
  add_query_commands();
  add_node_commands();
  add_bitmap_commands();
  add_job_commands();
  add_export_commands();
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
  while (!monitors_.empty())
    co_await clock_->wait(std::chrono::milliseconds(10));
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
  while (true) {
    while (auto value = monitor.input.next()) {
      const std::string reply = co_await answer(monitor, std::move(*value));
      if (dead_)
        co_return;
      monitor.client->send(reply + "\r\n");
    }
    monitor.input.feed(co_await monitor.client->channel().receive());
  }
}

/// For so long, or until the client has given up.
asio::awaitable<void> FakeQemu::stall(Monitor& monitor, Clock::Duration duration) {
  stalled_until_ = clock_->now() + duration;
  try {
    co_await client::either(clock_->wait(duration), listen(monitor));
  } catch (const ChannelLost&) {
    stalled_until_ = clock_->now();
    throw;
  }
  stalled_until_ = clock_->now();
}

/// Until the other end closes the connection.
asio::awaitable<void> FakeQemu::listen(Monitor& monitor) {
  while (true)
    monitor.input.feed(co_await monitor.client->channel().receive());
}

Clock::Duration FakeQemu::time_of(const qapi::Command& command) const {
  if (command.name != qapi::Transaction::kName)
    return timing_.command;
  return timing_.transaction + snapshots_in(command) * timing_.snapshot;
}

asio::awaitable<std::string> FakeQemu::answer(Monitor& monitor, QmpValue message) {
  qapi::ErrorReply error{"GenericError", message.error, std::nullopt};
  if (!message.error.empty())
    co_return qapi::to_line(error);
  if (const json::object* object = message.value.if_object())
    if (const json::value* id = object->if_contains("id"))
      error.id = *id;
  try {
    const bool out_of_band = monitor.out_of_band && take_out_of_band(message.value);
    qapi::Command command = qapi::command_of(std::move(message.value));
    hooks_.arrived(command);
    if (out_of_band)
      refuse_out_of_band(command.name);
    json::value value = co_await carry_out(monitor, std::move(command));
    hooks_.answered("");
    co_return qapi::to_line(qapi::Return{.value = std::move(value), .id = error.id});
  } catch (const qapi::CommandError& refused) {
    error.description = refused.description();
  } catch (const BlockError& refused) {
    error.error_class = refused.error_class();
    error.description = refused.what();
  } catch (const ChannelLost&) {
    throw;
  } catch (const Error& failure) {  // of a file, say
    error.description = failure.what();
  }
  hooks_.answered(error.description);
  co_return qapi::to_line(error);
}

/// Of the commands that QEMU lets come so (to break off a migration, say) the fake has none.
void FakeQemu::refuse_out_of_band(const std::string& name) const {
  if (name == kNegotiate || commands_.knows(name))
    refuse("The command {} does not support OOB", name);
  CommandTable::refuse_unknown(name);
}

asio::awaitable<json::value> FakeQemu::carry_out(Monitor& monitor, qapi::Command command) {
  co_await clock_->wait(time_of(command));
  if (dead_)
    throw ChannelLost(ECONNRESET, "QEMU is gone");
  const bool negotiates = command.name == kNegotiate;
  if (!monitor.negotiated && !negotiates)
    throw BlockError("Expecting capabilities negotiation with 'qmp_capabilities'",
                     "CommandNotFound");
  if (monitor.negotiated && negotiates)
    throw BlockError("Capabilities negotiation is already complete, command ignored",
                     "CommandNotFound");
  if (negotiates) {
    const auto wanted = CommandTable::read<QmpCapabilities>(command.arguments).enable;
    if (wanted)
      check_capabilities(*wanted);
    monitor.negotiated = true;
    monitor.out_of_band = wanted && !wanted->empty();
    co_return json::object();
  }
  if (const auto refusal = hooks_.before_command(command))
    throw BlockError(*refusal);
  json::value value = commands_.execute(command);
  hooks_.step(command.name);
  const AnswerFate fate = hooks_.after_command(command);
  if (fate.delay.count() != 0)
    co_await stall(monitor, fate.delay);
  if (fate.disconnect)
    throw ChannelLost(ECONNRESET, "the connection was cut");
  co_return value;
}

void FakeQemu::emit(const std::string& name, json::object data) {
  hooks_.event(name, data);
  const std::int64_t now = std::chrono::duration_cast<std::chrono::microseconds>(
                               (clock_->now() + epoch).time_since_epoch())
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
  return run_state_ == "paused" || is_pending(device);
}

bool FakeQemu::is_pending(const Device& device) const {
  return std::any_of(jobs_.begin(), jobs_.end(),
                     [&](const Job& job) { return job.drains && job.active == device.root; });
}

void FakeQemu::unplug(Device& device) {
  graph_.unplug(device);
  emit("DEVICE_DELETED", {{"device", device.id}, {"path", "/machine/peripheral/" + device.id}});
}

void FakeQemu::write(Device& device, GuestWrite write, WriteDone done) {
  if (drained(device))
    held_.push_back({&device, write, std::move(done), run_state_ == "running"});
  else
    write_now(device, write, done);
}

void FakeQemu::write_now(Device& device, const GuestWrite& write, const WriteDone& done) {
  std::exception_ptr error;
  try {
    hooks_.before_write(device, write);
    if (write.number == 0)
      graph_.write_zero(*device.root, write.granule);
    else
      graph_.write(*device.root, write.granule, write.number);
    mark_for_jobs(*device.root, write.granule);
    if (flushes_writes)
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
  Node& file = *node.file;
  if (!file.grown)
    return;
  emit(std::string(qapi::BlockWriteThresholdEvent::kName),
       {{"node-name", file.name},
        {"amount-exceeded", file.grown->beyond},
        {"write-threshold", file.grown->threshold}});
  file.grown.reset();
}

}  // namespace nbdelta::sim
