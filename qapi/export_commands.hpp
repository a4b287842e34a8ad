#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qapi/command.hpp"

/// QEMU's own NBD server (QEMU qapi/block-export.json), and what it says of itself (qapi/misc.json,
/// qapi/introspect.json, qapi/migration.json).
namespace nbdelta::qapi {

/// "SocketAddressLegacy".
struct SocketAddress {
  struct Path {
    std::string path;
    template <class Visitor>
    void fields(Visitor& visit) {
      visit("path", path);
    }
  };

  std::string type = "unix";
  Path data;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("type", type);
    visit("data", data);
  }
};

struct NbdServerStart {
  static constexpr std::string_view kName = "nbd-server-start";
  using Result = Nothing;
  SocketAddress address;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("addr", address);
  }
};

struct NbdServerStop {
  static constexpr std::string_view kName = "nbd-server-stop";
  using Result = Nothing;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

struct BlockExportAdd {
  static constexpr std::string_view kName = "block-export-add";
  using Result = Nothing;
  std::string type = "nbd";
  std::string id;
  std::string node_name;
  std::string name;  // what NBD clients ask for
  std::vector<std::string> bitmaps;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("type", type);
    visit("id", id);
    visit("node-name", node_name);
    visit("name", name);
    visit("bitmaps", bitmaps);
  }
};

struct BlockExportDel {
  static constexpr std::string_view kName = "block-export-del";
  using Result = Nothing;
  std::string id;
  std::optional<std::string> mode;  // hard: with its clients; safe, the default: if it has none
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("id", id);
    visit("mode", mode);
  }
};

struct ExportInfo {
  std::string id;
  std::string type;
  std::string node_name;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("id", id);
    visit("type", type);
    visit("node-name", node_name);
  }
};

struct QueryBlockExports {
  static constexpr std::string_view kName = "query-block-exports";
  using Result = std::vector<ExportInfo>;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

struct CommandInfo {
  std::string name;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("name", name);
  }
};

struct QueryCommands {
  static constexpr std::string_view kName = "query-commands";
  using Result = std::vector<CommandInfo>;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// "IOThreadInfo".
struct IothreadInfo {
  std::string id;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("id", id);
  }
};

struct QueryIothreads {
  static constexpr std::string_view kName = "query-iothreads";
  using Result = std::vector<IothreadInfo>;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

/// "MigrationInfo".
struct MigrationInfo {
  std::optional<std::string> status;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("status", status);
  }
};

struct QueryMigrate {
  static constexpr std::string_view kName = "query-migrate";
  using Result = MigrationInfo;
  template <class Visitor>
  void fields(Visitor& /*visit*/) {}
};

}  // namespace nbdelta::qapi
