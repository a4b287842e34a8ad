#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qapi/command.hpp"

/// Dirty bitmaps, and the switch to an overlay (QEMU qapi/block-core.json, qapi/transaction.json).
namespace nbdelta::qapi {

struct BlockDirtyBitmapAdd {
  static constexpr std::string_view kName = "block-dirty-bitmap-add";
  using Result = Nothing;
  std::string node;
  std::string name;
  std::optional<std::uint32_t> granularity;  // bytes
  std::optional<bool> persistent;
  std::optional<bool> disabled;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node", node);
    visit("name", name);
    visit("granularity", granularity);
    visit("persistent", persistent);
    visit("disabled", disabled);
  }
};

struct BlockDirtyBitmapRemove {
  static constexpr std::string_view kName = "block-dirty-bitmap-remove";
  using Result = Nothing;
  std::string node;
  std::string name;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node", node);
    visit("name", name);
  }
};

struct BlockDirtyBitmapClear {
  static constexpr std::string_view kName = "block-dirty-bitmap-clear";
  using Result = Nothing;
  std::string node;
  std::string name;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node", node);
    visit("name", name);
  }
};

struct BlockDirtyBitmapEnable {
  static constexpr std::string_view kName = "block-dirty-bitmap-enable";
  using Result = Nothing;
  std::string node;
  std::string name;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node", node);
    visit("name", name);
  }
};

struct BlockDirtyBitmapDisable {
  static constexpr std::string_view kName = "block-dirty-bitmap-disable";
  using Result = Nothing;
  std::string node;
  std::string name;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node", node);
    visit("name", name);
  }
};

/// Adds what is dirty in `bitmaps` to `target`.
struct BlockDirtyBitmapMerge {
  static constexpr std::string_view kName = "block-dirty-bitmap-merge";
  using Result = Nothing;
  std::string node;
  std::string target;
  std::vector<std::string> bitmaps;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node", node);
    visit("target", target);
    visit("bitmaps", bitmaps);
  }
};

/// `overlay` goes over `node`; it must not have a backing node yet.
struct BlockdevSnapshot {
  static constexpr std::string_view kName = "blockdev-snapshot";
  using Result = Nothing;
  std::string node;
  std::string overlay;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("node", node);
    visit("overlay", overlay);
  }
};

/// One of several commands that take place together or not at all.
struct TransactionAction {
  std::string type;
  json::object data;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("type", type);
    visit("data", data);
  }

  template <TypedCommand T>
  static TransactionAction of(const T& command) {
    return {std::string(T::kName), to_json(command).get_object()};
  }
};

struct Transaction {
  static constexpr std::string_view kName = "transaction";
  using Result = Nothing;
  std::vector<TransactionAction> actions;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("actions", actions);
  }
};

}  // namespace nbdelta::qapi
