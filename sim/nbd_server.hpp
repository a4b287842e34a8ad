#pragma once

#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "sim/fake_qemu.hpp"
#include "sim/file_host.hpp"
#include "sim/unix_server.hpp"

namespace nbdelta::sim {

/// QEMU's NBD server (nbd-server-start, block-export-add) on a Unix socket: read-only exports of
/// the fake's nodes, with base:allocation and qemu:dirty-bitmap contexts. For one thread.
class NbdServer {
 public:
  /// The nodes' images are those of `host`; both must outlive the server and the executor's run.
  NbdServer(asio::any_io_executor executor, FakeQemu& qemu, const FileHost& host);
  ~NbdServer();

  /// Throws Error where the socket cannot be made.
  void listen(const std::string& path);
  /// Clients are cut off; the socket goes.
  void stop();
  /// Those of exports that are no more, or are to end, are cut off.
  void drop_stale_clients();
  /// Whether a client of this export is connected.
  bool serves(const std::string& id) const;

 private:
  struct Client;
  asio::awaitable<void> serve(UnixServer::Socket socket);

  asio::any_io_executor executor_;
  FakeQemu* qemu_;
  const FileHost* host_;
  std::shared_ptr<UnixServer> server_;
  std::list<std::shared_ptr<Client>> clients_;
};

}  // namespace nbdelta::sim
