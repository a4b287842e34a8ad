#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sim/fake_qemu.hpp"

// Nodes that come, change and go.
namespace nbdelta::sim {

namespace json = qapi::json;
using namespace qapi;

namespace {

/// The definition of a file node inside of that of its format node.
struct FileOptions {
  struct Cache {
    std::optional<bool> direct;
    std::optional<bool> no_flush;
    template <class Visitor>
    void fields(Visitor& visit) {
      visit("direct", direct);
      visit("no-flush", no_flush);
    }
  };

  std::string driver;
  std::string file_name;
  std::optional<std::string> node_name;
  std::optional<Cache> cache;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("driver", driver);
    visit("filename", file_name);
    visit("node-name", node_name);
    visit("cache", cache);
  }
};

/// A member of a blockdev-reopen; what is not given there is reset to its default.
struct ReopenOptions {
  std::string driver;
  std::optional<std::string> node_name;
  std::optional<std::string> file;
  std::optional<json::value> backing;
  std::optional<bool> read_only;
  std::optional<std::string> discard;
  std::optional<std::string> detect_zeroes;
  std::optional<FileOptions::Cache> cache;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("driver", driver);
    visit("node-name", node_name);
    visit("file", file);
    visit("backing", backing);
    visit("read-only", read_only);
    visit("discard", discard);
    visit("detect-zeroes", detect_zeroes);
    visit("cache", cache);
  }
};

void check_value(std::string_view name, const std::optional<std::string>& value,
                 std::initializer_list<std::string_view> known) {
  if (value && std::find(known.begin(), known.end(), *value) == known.end())
    refuse("Parameter '{}' does not accept value '{}'", name, *value);
}

/// The name of the node that is to lie below; empty: none, or what the header says.
std::string backing_of(const BlockdevAdd& command) {
  if (!command.backing)
    return {};
  if (command.driver != "qcow2")
    refuse("Parameter 'backing' is unexpected");
  if (command.backing->is_object())
    refuse("The fake takes no definition of a backing node");
  if (!command.backing->is_null() && !command.backing->is_string())
    refuse("Invalid parameter type for 'backing', expected: BlockdevRefOrNull");
  return command.backing->is_null() ? std::string() : std::string(command.backing->get_string());
}

void attach_backing(BlockGraph& graph, Node& node, const std::string& name) {
  try {
    Node& backing = graph.lookup(name);
    if (!backing.is_format())
      refuse("The fake knows contents of format nodes alone");
    node.backing = &backing;
    node.backing_is_none = false;
  } catch (const BlockError& error) {
    const std::string why = error.what();
    graph.remove(node.name);
    refuse("Could not open backing file: {}", why);
  }
}

}  // namespace

void FakeQemu::add_node_commands() {
  commands_.add<BlockdevAdd>([this](const BlockdevAdd& command) { return blockdev_add(command); });
  commands_.add<BlockdevReopen>(
      [this](const BlockdevReopen& command) { return blockdev_reopen(command); });
  commands_.add<BlockdevDel>([this](const BlockdevDel& command) {
    graph_.remove(command.node_name);
    return Nothing{};
  });
  commands_.add<HumanMonitorCommand>(
      [this](const HumanMonitorCommand& command) { return human_monitor_command(command); });
  commands_.add<ChangeBackingFile>(
      [this](const ChangeBackingFile& command) { return change_backing_file(command); });
  commands_.add<BlockSetWriteThreshold>(
      [this](const BlockSetWriteThreshold& command) { return set_write_threshold(command); });
}

Nothing FakeQemu::blockdev_add(const BlockdevAdd& command) {
  if (command.driver == "null-co") {
    graph_.open_null(command.node_name);
    return {};
  }
  if (command.driver != "qcow2" && command.driver != "raw")
    refuse("Parameter 'driver' does not accept value '{}'", command.driver);
  if (!command.file)
    refuse("Parameter 'file' is missing");
  if (!command.file->is_string() && !command.file->is_object())
    refuse("Invalid parameter type for 'file', expected: BlockdevRef");
  if (const json::string* name = command.file->if_string())
    graph_.lookup(std::string(*name));  // nbdelta never gives one that is there
  FileOptions file;
  read_argument(*command.file, file, "file");
  check_value("driver", file.driver, {"file"});
  const std::string backing = backing_of(command);
  if (command.node_name.empty())
    check_node_name(command.node_name);
  if (file.node_name && file.node_name->empty())
    check_node_name(*file.node_name);
  NodeOptions options;
  options.driver = command.driver;
  options.name = command.node_name;
  options.file_name = file.node_name.value_or("");
  options.path = file.file_name;
  options.read_only = command.read_only.value_or(false);
  options.no_backing = command.backing.has_value();
  options.direct = command.cache && command.cache->direct.value_or(false);
  options.file_direct = file.cache ? file.cache->direct.value_or(options.direct) : options.direct;
  Node& node = graph_.open(options);
  if (!backing.empty())
    attach_backing(graph_, node, backing);
  return {};
}

struct FakeQemu::Reopening {
  Node* node;
  Node* backing;
  bool read_only;
  bool direct;
  std::string detect_zeroes;
};

/// All members are looked at before the first is carried out.
Nothing FakeQemu::blockdev_reopen(const BlockdevReopen& command) {
  std::vector<Reopening> reopenings;
  for (const json::object& each : command.options)
    reopenings.push_back(read_reopening(each, fmt::format("options[{}]", reopenings.size())));
  change_backing(reopenings);
  for (const Reopening& each : reopenings) {
    graph_.set_read_only(*each.node, each.read_only);
    each.node->direct = each.direct;
    each.node->detect_zeroes = each.detect_zeroes;
  }
  return {};
}

FakeQemu::Reopening FakeQemu::read_reopening(const json::object& given, const std::string& path) {
  const auto options = CommandTable::read<ReopenOptions>(given, path);
  check_value("discard", options.discard, {"ignore", "unmap"});
  check_value("detect-zeroes", options.detect_zeroes, {"off", "on", "unmap"});
  if (!options.node_name)
    refuse("node-name not specified");
  Node* node = graph_.find(*options.node_name);
  if (node == nullptr)
    refuse("Failed to find node with node-name='{}'", *options.node_name);
  if (options.driver != node->driver)
    refuse("Cannot change the option 'driver'");
  if (node->name.starts_with('#'))  // it was not given one
    refuse("Cannot change the option 'node-name'");
  format_node(*node);
  const std::string detect_zeroes = options.detect_zeroes.value_or("off");
  if (detect_zeroes == "unmap" && options.discard != "unmap")
    refuse(
        "setting detect-zeroes to unmap is not allowed without setting discard operation to "
        "unmap");
  Node* backing = new_backing(*node, options.backing);
  if (options.file)
    refuse_other_file(*node, *options.file);
  const bool read_only = options.read_only.value_or(false);
  if (read_only && (graph_.device_of(*node) != nullptr || is_written_by_job(*node)))
    refuse("Read-only block node '{}' cannot support read-write users", node->name);
  if (node->read_only && !options.read_only)  // its file node stays read-only
    refuse("Block node is read-only");
  const bool direct = options.cache && options.cache->direct.value_or(false);
  return {node, backing, read_only, direct, detect_zeroes};
}

/// All, or none.
void FakeQemu::change_backing(std::vector<Reopening>& reopenings) {
  for (Reopening& each : reopenings)
    std::swap(each.node->backing, each.backing);
  try {
    for (const Reopening& each : reopenings)
      check_permissions(*each.node);
  } catch (const BlockError&) {
    for (auto each = reopenings.rbegin(); each != reopenings.rend(); ++each)
      each->node->backing = each->backing;
    throw;
  }
}

/// What is below a node after it was opened again.
Node* FakeQemu::new_backing(const Node& node, const std::optional<json::value>& given) const {
  if (!given) {
    if (node.backing != nullptr || node.image->backing())
      refuse("backing is missing for '{}'", node.name);
    return nullptr;
  }
  Node* backing = nullptr;
  if (!given->is_null()) {
    std::string name;
    read_argument(*given, name, "backing");
    backing = graph_.find(name);
    if (backing == nullptr)
      refuse("Cannot find device='' nor node-name='{}'", name);
    graph_.refuse_cycle(*backing, node);
  }
  if (backing != node.backing)
    refuse_if_frozen(node);
  return backing;
}

/// Commits rely on the links between the nodes that they work on.
void FakeQemu::refuse_if_frozen(const Node& node) const {
  for (const Job& job : jobs_) {
    if (!job.in_force)
      continue;
    if (job.intermediate && node.backing == job.top)
      refuse("Cannot replace implicit backing child of {}", node.name);
    if (is_between(job, node))
      refuse("Cannot change frozen 'backing' link from '{}' to '{}'", node.name,
             node.backing->name);
  }
}

/// A reopening may not take another file either.
void FakeQemu::refuse_other_file(const Node& node, const std::string& name) const {
  const Node* file = graph_.find(name);
  if (file == nullptr)
    refuse("Cannot find device='' nor node-name='{}'", name);
  for (const Node* owner : graph_.users_of(*file))
    if (owner != &node)
      refuse(
          "Permission conflict on node '{0}': permissions 'write, resize' are both required by "
          "node '{1}' (uses node '{0}' as 'file' child) and unshared by node '{2}' (uses node "
          "'{0}' as 'file' child).",
          name, owner->name, node.name);
}

bool FakeQemu::is_written_by_job(const Node& node) const {
  return std::any_of(jobs_.begin(), jobs_.end(),
                     [&](const Job& job) { return job.base == &node && node.has_job_blk; });
}

/// The fake has contents of those alone.
Node& FakeQemu::format_node(Node& node) {
  if (!node.is_format())
    refuse("The fake cannot do that with a node of the driver '{}'", node.driver);
  return node;
}

/// What the guest, or nobody, has on top, and no job works on. Of a node's or a drive's name.
Node& FakeQemu::root_node(const std::string& name) {
  Node& node = graph_.lookup(name);
  const bool job_is_left =
      std::any_of(jobs_.begin(), jobs_.end(), [&](const Job& job) { return job.main == &node; });
  if (job_is_left || !graph_.users_of(node).empty())
    refuse("Need a root block node");
  return node;
}

/// Only `qemu-io "NODE" COMMAND`, where that is `flush`, `"reopen -r"` or `"reopen -w"`.
std::string FakeQemu::human_monitor_command(const HumanMonitorCommand& command) {
  constexpr std::string_view kBefore = "qemu-io \"";
  std::string_view line = command.command_line;
  const std::size_t end = line.find("\" ", kBefore.size());
  const std::string_view what =
      end == std::string_view::npos ? std::string_view() : line.substr(end + 2);
  const bool reopens = what == "\"reopen -r\"" || what == "\"reopen -w\"";
  if (!line.starts_with(kBefore) || (what != "flush" && !reopens))
    return fmt::format("unknown command: '{}'\r\n", line.substr(0, line.find(' ')));
  const std::string name(line.substr(kBefore.size(), end - kBefore.size()));
  Node* node = graph_.find(name);
  if (node == nullptr)
    return fmt::format("Error: Cannot find device='' nor node-name='{}'\r\n", name);
  if (reopens)
    graph_.set_read_only(format_node(*node), what == "\"reopen -r\"");
  else
    graph_.flush(*node);
  return std::string();
}

Nothing FakeQemu::change_backing_file(const ChangeBackingFile& command) {
  Node& active = root_node(command.device);
  Node* node = graph_.find(command.image_node);
  if (node == nullptr)
    refuse("Cannot find device='' nor node-name='{}'", command.image_node);
  if (node->backing == nullptr)
    refuse("not allowing backing file change on an image without a backing file");
  if (node != &active && !graph_.is_below(*node, active))
    refuse("'{}' and image file are not in the same chain", command.device);
  constexpr std::size_t kLongestName = 1023;  // qcow2: "Backing file name"
  const bool read_only = node->read_only;
  graph_.set_read_only(*node, false);
  std::string why;
  if (command.backing_file.size() > kLongestName)
    why = "Invalid argument";
  try {
    if (why.empty())
      graph_.set_backing(*node, {command.backing_file, node->driver});
  } catch (const BlockError& failure) {
    why = failure.what();
  }
  graph_.set_read_only(*node, read_only);
  if (!why.empty())
    refuse("Could not change backing file to '{}': {}", command.backing_file, why);
  return {};
}

Nothing FakeQemu::set_write_threshold(const BlockSetWriteThreshold& command) {
  Node* node = graph_.find(command.node_name);
  if (node == nullptr)
    refuse("Device '{}' not found", command.node_name);
  node->write_threshold = command.write_threshold;
  return {};
}

}  // namespace nbdelta::sim
