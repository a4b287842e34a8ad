#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "qapi/block_nodes.hpp"
#include "sim/block_error.hpp"
#include "sim/image.hpp"

namespace nbdelta::sim {

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

/// Whether QEMU takes it for the name of a node, a job or an export.
bool is_well_formed(std::string_view id);
/// Throws BlockError where it cannot be a new node's.
void check_node_name(std::string_view name);

/// A node of QEMU's block graph: a format node over a protocol node, or the latter.
///
/// Invariants
/// 1. A node that is written to holds the write lock on its file.
/// 2. The persistent bitmaps of a node that has become read-only are in its image, which says that
///    they are not in use; a writable one's, as far as they are there, are marked as in use.
struct Node {
  std::string name;
  std::string driver;  // "qcow2", "raw", "file" or "null-co"
  std::string path;
  Node* file = nullptr;
  Node* backing = nullptr;
  std::shared_ptr<Image> image;  // null: a protocol node
  bool read_only = true;
  bool by_user = false;  // of blockdev-add or the command line: it stays when nobody uses it
  bool backing_is_none = false;  // "backing": null
  bool direct = false;
  std::string detect_zeroes = "off";
  std::string job;           // that has it blocked; empty: none
  bool filtered = false;     // a job stands between it and the guest's device
  bool has_job_blk = false;  // a job reads or writes it on its own
  std::vector<Bitmap> bitmaps;
  std::uint64_t write_threshold = 0;  // bytes
  struct Growth {
    std::uint64_t threshold;
    std::uint64_t beyond;
  };
  std::optional<Growth> grown;  // and nobody was told yet

  bool is_format() const { return image != nullptr; }
  Bitmap* find_bitmap(const std::string& name);
};

/// A disk of the guest.
struct Device {
  std::string name;  // of -drive; empty: its node was given by name
  std::string id;
  bool removable = false;
  bool unplugged = false;  // no root either
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
  bool file_direct = false;
};

/// What a transaction has done: exactly one of them is called.
struct Change {
  std::function<void()> settle = [] {};
  std::function<void()> undo = [] {};
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
  /// One without a file, that nobody reads.
  Node& open_null(const std::string& name);
  void add_device(const std::string& drive, const std::string& id, Node& root);

  /// The guest has let it go. Nodes of -drive go with it, unless somebody else has them.
  void unplug(Device& device);

  std::vector<Device>& devices() { return devices_; }
  const std::vector<Device>& devices() const { return devices_; }
  const std::vector<std::unique_ptr<Node>>& nodes() const { return nodes_; }
  Node* find(const std::string& name) const;
  /// Of a node's or a drive's name.
  Node& lookup(const std::string& name) const;
  Device* device_of(const Node& root);
  /// What QEMU calls it by in messages.
  const std::string& shown_name(const Node& node) const;

  /// `user`, an export's, goes on with what takes its node's place.
  void hold(Node*& user) { holds_.insert(&user); }
  void let_go(Node*& user) { holds_.erase(&user); }

  /// What reads of a granule give.
  WriteNumber read(const Node& node, std::uint64_t granule) const;
  void write(Node& node, std::uint64_t granule, WriteNumber number);
  void write_zero(Node& node, std::uint64_t granule);
  /// As a job copies it: the same state, not only the same contents. `from` is above `to`.
  void copy(const Node& from, Node& to, std::uint64_t granule);
  /// Down to the storage.
  void flush(Node& node);

  /// `overlay` takes the place of `node` for all that use it; `node` becomes read-only when that is
  /// settled.
  Change snapshot(Node& node, const std::string& overlay);
  void refuse_cycle(const Node& backing, const Node& node) const;
  /// To at least the size of `other`.
  void grow_to(Node& node, const Node& other);
  /// All that use `from` use `to`; `except` stays with it.
  void replace(Node& from, Node& to, const Node* except);
  void set_read_only(Node& node, bool read_only);
  /// Takes a persistent bitmap out of the image.
  /// In the image's header.
  static void set_backing(Node& node, const BackingFile& backing);
  static void forget_stored(Node& node, const std::string& bitmap);
  /// As QEMU after a snapshot or a commit: where it fails, the node stays as it is.
  void try_read_only(Node& node);
  /// Whether anything but its owner has it.
  bool in_use(const Node& node) const;
  /// Whether the guest, an export or a job has it ("BlockBackend").
  bool has_blk(const Node& node) const;
  /// Throws where a job or an overlay keeps it as it is.
  void refuse_if_blocked(const Node& node) const;
  void refuse_if_read_by_others(const Node& node) const;
  /// Whether somebody relies on what it reads.
  bool is_read(const Node& node) const;
  void remove(const std::string& name);
  /// Nodes that nobody has.
  void collect();
  /// QEMU dies: bitmaps stay marked as in use. What was not flushed is for the images' owner to
  /// lose, before this. No destructor acts.
  void die();
  /// QEMU ends: bitmaps are stored.
  void shut_down();

  bool is_below(const Node& node, const Node& top) const;
  std::vector<Node*> users_of(const Node& node) const;

 private:
  std::string make_up_name();
  void refuse_name_in_use(const std::string& name) const;
  std::shared_ptr<Image> open_image(const NodeOptions& options);
  void open_backing(Node& node);
  void mark(Node& node, std::uint64_t granule);
  void grow(Node& node);
  void load_bitmaps(Node& node);
  static void store_bitmaps(Node& node);
  static void mark_bitmaps_in_use(Node& node);
  void fill_cluster(Node& node, std::uint64_t granule);

  ImageHost* host_;
  std::uint64_t made_up_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<Device> devices_;
  std::set<Node**> holds_;
};

qapi::NodeInfo describe(const BlockGraph& graph, const Node& node, bool flat);

}  // namespace nbdelta::sim
