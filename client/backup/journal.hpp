#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/backup/environment.hpp"
#include "client/backup/names.hpp"
#include "client/repository/manifest.hpp"
#include "qapi/fields.hpp"

namespace nbdelta::client::backup {

/// Where a session is: what it was about to do when it last wrote its journal.
namespace phase {
inline constexpr std::string_view kPrepare = "prepare";  // overlays are made and added; not in use
inline constexpr std::string_view kWindow = "window";    // freeze, switch, thaw
inline constexpr std::string_view kExport = "export";    // the guest runs on overlays
inline constexpr std::string_view kCommit = "commit";    // the bases are not read any more
inline constexpr std::string_view kKept = "kept";        // a commit did not end; an overlay stays
inline constexpr std::string_view kAbsorb = "absorb";    // older overlays are committed first
inline constexpr std::string_view kOffline = "offline";  // no overlay is left; bitmaps are
}  // namespace phase

/// One disk of a session. Paths are QEMU's unless they say local.
struct JournalDisk {
  std::string name;
  std::uint32_t index = 0;  // in names
  std::string base_node;
  std::string base_path;
  std::string base_local;
  std::string base_format;
  std::string overlay_node;
  std::string overlay_path;
  std::string overlay_local;
  bool persistent = false;            // the new bitmap
  std::optional<std::string> socket;  // local; of an external session's export
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("name", name);
    visit("index", index);
    visit("base-node", base_node);
    visit("base-path", base_path);
    visit("base-local", base_local);
    visit("base-format", base_format);
    visit("overlay-node", overlay_node);
    visit("overlay-path", overlay_path);
    visit("overlay-local", overlay_local);
    visit("persistent", persistent);
    visit("socket", socket);
  }
};

/// A session as it is found again after a crash, in `REPO/VM/nbdelta-session.json`. It says what
/// was intended; what is, QEMU says.
struct Journal {
  std::string vm;
  std::string chain;
  std::uint32_t number = 0;
  std::string phase;
  bool external = false;  // begun by `nbdelta begin`
  std::string qmp;
  std::optional<std::string> agent;
  std::string started;     // RFC 3339, UTC
  std::int64_t since = 0;  // seconds since 1970: when the phase began
  std::string tracking;
  std::string point;  // the restore point's folder
  std::vector<JournalDisk> disks;
  bool nbd_server = false;                       // QEMU's was started for us
  std::optional<bool> may_be_frozen;             // the guest: no thaw of this session's was seen
  std::optional<repository::Manifest> manifest;  // of an external session, until it ends
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("vm", vm);
    visit("chain", chain);
    visit("number", number);
    visit("phase", phase);
    visit("external", external);
    visit("qmp", qmp);
    visit("agent", agent);
    visit("started", started);
    visit("since", since);
    visit("tracking", tracking);
    visit("point", point);
    visit("disks", disks);
    visit("nbd-server", nbd_server);
    visit("may-be-frozen", may_be_frozen);
    visit("manifest", manifest);
  }

  SessionId id() const { return {chain, number}; }
};

/// Where QEMU serves its bitmaps to our plugin: a Unix socket beside QMP's, since QEMU can make one
/// there and we can reach it.
inline std::string map_socket(const Journal& journal) {
  return folder_of(journal.qmp) + "/" + bitmap_name(journal.id()) + ".sock";
}

/// Of a session whose servers have ended: one that was killed has left its own.
void remove_export_sockets(Files& files, const Journal& journal);

/// REPO/VM/nbdelta-session.json; `folder` is REPO/VM.
std::string journal_path(const std::string& folder);
/// Nothing where no session is open. Throws Error (EPROTO) for what is no journal.
std::optional<Journal> read_journal(Files& files, const std::string& folder);

}  // namespace nbdelta::client::backup
