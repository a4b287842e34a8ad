#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "tests/support/process.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {

/// The beginning of every nbdkit command: {"nbdkit"}, or in a sanitizer's build env(1) that loads
/// the sanitizer's runtime, and then nbdkit. After it come nbdkit's options, a plugin, parameters.
Command nbdkit_command();

/// The plugin that this build made. Throws Error where it made none.
std::string delta_plugin();

/// The nbdelta that this build made. Throws Error where it made none.
std::string nbdelta_program();

/// An NBD server on a Unix socket of its own, for as long as the object lives. Ready to be used
/// once constructed; a server that ends instead is an Error with what it wrote.
///
/// A server that has crashed by itself, or that a sanitizer complains of, fails the running test
/// when the object goes.
class NbdServer {
 public:
  /// `nbdkit OPTIONS delta PARAMETERS` with the plugin of this build.
  static NbdServer delta(const Command& parameters, const Command& options = {});
  /// The same with any plugin (a name or a path); its filters are among the options.
  static NbdServer nbdkit(const std::string& plugin, const Command& parameters = {},
                          const Command& options = {});
  /// `qemu-nbd ARGUMENTS`, for any number of clients. Give -r, -f FORMAT, -B BITMAP, -x NAME, FILE.
  static NbdServer qemu_nbd(const Command& arguments);
  /// `qemu-storage-daemon ARGUMENTS` with an NBD server; give --blockdev and --export.
  static NbdServer storage_daemon(const Command& arguments);

  /// nbd+unix URI of an export.
  std::string uri(std::string_view export_name = {}) const;
  const std::string& socket() const { return socket_; }
  Background& process() { return *process_; }
  /// What the server has written to stderr so far.
  std::string errors() const { return process_->err(); }

  /// Ends the server and returns how it ended; the test judges it.
  Outcome stop();

  NbdServer(NbdServer&&) noexcept = default;
  NbdServer& operator=(NbdServer&&) = delete;
  ~NbdServer();

 private:
  explicit NbdServer(std::unique_ptr<TempFolder> folder);
  void start(const Command& command);

  std::unique_ptr<TempFolder> folder_;
  std::string socket_;
  std::string pid_file_;
  std::unique_ptr<Background> process_;
};

/// Starts `nbdkit delta PARAMETERS` and ends it as soon as it would serve: for what the plugin
/// refuses at its start. Status 0: it did not refuse.
Outcome try_delta(const Command& parameters);

}  // namespace nbdelta::testing
