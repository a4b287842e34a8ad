#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "qapi/block_nodes.hpp"
#include "sim/image.hpp"

namespace nbdelta::sim {

/// A refusal, in QEMU's words.
class BlockError : public Error {
 public:
  explicit BlockError(const std::string& description, std::string error_class = "GenericError")
      : Error(EINVAL, description), class_(std::move(error_class)) {}
  const std::string& error_class() const { return class_; }

 private:
  std::string class_;
};

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw BlockError(fmt::format(format, std::forward<Args>(args)...));
}

/// One bit a granule of its node.
struct Bitmap {
  std::string name;
  bool persistent = false;
  bool recording = true;
  bool inconsistent = false;
  unsigned users = 0;  // jobs and exports: "busy"
  std::vector<bool> bits;

  bool busy() const { return users != 0; }
  std::uint64_t count() const;  // granules
};

/// A node of QEMU's block graph: a format node over a protocol node, or the latter.
///
/// Invariants
/// 1. A node that is written to holds the write lock on its file.
/// 2. A read-only node's persistent bitmaps are those of its image, which says that they are not in
///    use; a writable one's are marked as in use there.
struct Node {
  std::string name;
  std::string driver;  // "qcow2", "raw" or "file"
  std::string path;
  Node* file = nullptr;
  Node* backing = nullptr;
  std::shared_ptr<Image> image;  // null: a protocol node
  bool read_only = true;
  bool by_user = false;  // of blockdev-add or the command line: it stays when nobody uses it
  bool backing_is_none = false;  // "backing": null
  bool direct = false;
  std::string job;  // that has it blocked; empty: none
  std::vector<Bitmap> bitmaps;
  std::uint64_t write_threshold = 0;  // bytes
  std::optional<std::uint64_t> grown_beyond;

  bool is_format() const { return image != nullptr; }
  Bitmap* find_bitmap(const std::string& name);
};

/// A disk of the guest.
struct Device {
  std::string name;  // of -drive; empty: its node was given by name
  std::string id;
  bool removable = false;
  Node* root = nullptr;
};

/// What a node is opened with.
struct NodeOptions {
  std::string driver;
  std::string name;  // empty: made up
  std::string file_name;
  std::string path;
  bool read_only = false;
  bool no_backing = false;
  bool direct = false;
};

/// QEMU's nodes and devices, what the guest reads and writes through them, and the rules by which
/// they change. For one thread. All refusals are BlockError.
class BlockGraph {
 public:
  BlockGraph(ImageHost& host, std::uint64_t seed) : host_(&host), made_up_(seed) {}
  BlockGraph(const BlockGraph&) = delete;
  BlockGraph& operator=(const BlockGraph&) = delete;
  ~BlockGraph();

  /// With its backing chain, unless told otherwise.
  Node& open(const NodeOptions& options);
  void add_device(const std::string& drive, const std::string& id, Node& root);

  std::vector<Device>& devices() { return devices_; }
  const std::vector<std::unique_ptr<Node>>& nodes() const { return nodes_; }
  Node* find(const std::string& name) const;
  /// Of a node's or a drive's name.
  Node& lookup(const std::string& name) const;
  Device* device_of(const Node& root);

  /// What reads of a granule give.
  WriteNumber read(const Node& node, std::uint64_t granule) const;
  void write(Node& node, std::uint64_t granule, WriteNumber number);
  void write_zero(Node& node, std::uint64_t granule);
  /// As a job copies it: the same state, not only the same contents. `from` is above `to`.
  void copy(const Node& from, Node& to, std::uint64_t granule);
  /// Down to the storage.
  void flush(Node& node);

  /// `overlay` takes the place of `node` for all that use it. Returns what undoes that.
  std::function<void()> snapshot(Node& node, Node& overlay);
  /// All that use `from` use `to`; `except` stays with it.
  void replace(Node& from, Node& to, const Node* except);
  void set_read_only(Node& node, bool read_only);
  /// Whether nothing but its owner has it.
  bool in_use(const Node& node) const;
  void remove(const std::string& name);
  /// Nodes that nobody has.
  void collect();
  /// QEMU dies: what was not flushed is lost, bitmaps stay marked as in use. No destructor acts.
  void die();
  /// QEMU ends: bitmaps are stored.
  void shut_down();

  bool is_below(const Node& node, const Node& top) const;
  std::vector<Node*> users_of(const Node& node) const;

 private:
  std::string make_up_name();
  void mark(Node& node, std::uint64_t granule);
  void grow(Node& node);
  void load_bitmaps(Node& node);
  void store_bitmaps(Node& node, bool in_use);
  void fill_cluster(Node& node, std::uint64_t granule);

  ImageHost* host_;
  std::uint64_t made_up_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<Device> devices_;
};

qapi::NodeInfo describe(const BlockGraph& graph, const Node& node, bool flat);

}  // namespace nbdelta::sim
