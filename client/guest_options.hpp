#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/backup/options.hpp"
#include "client/backup/settle.hpp"

namespace nbdelta::client {

/// The parts of a command line that backup, begin, end, status and recover share.
struct GuestOptions {
  std::string qmp;
  std::string agent;
  std::string vm;
  std::string repository;
  std::vector<std::string> paths;
  double commit_deadline_s = 600;
  std::string plugin;
  bool json = false;
  bool quiet = false;

  enum class Needs : std::uint8_t { guest, guest_and_repository };
  void add_to(CLI::App& command, Needs needs);

  /// Of a session: how to freeze, which disks.
  void add_session_options(CLI::App& command);

  /// Throws target::UsageError.
  backup::Options interpret() const;

  std::vector<std::string> disks;
  std::vector<std::string> exclude;
  std::vector<std::string> mountpoints;
  std::string quiesce = "auto";
  std::string tracking = "bitmap";
  std::string overlay_dir;
  double freeze_deadline_s = 10;
  bool presync = false;
  bool full = false;
  bool require_incremental = false;
};

/// Runs a session's coroutine to its end. SIGINT and SIGTERM ask it to end early, which still puts
/// everything right; a second one ends the process at once. Throws what `job` throws; returns 128 +
/// the signal's number where one came and the job failed for it, otherwise 0.
int run_session(const std::string& plugin,
                const std::function<asio::awaitable<void>(backup::Environment& environment)>& job,
                const std::function<void()>& tick);

/// What was put right, and what is left; returns the exit status.
int print_settled(const backup::Settled& settled, const GuestOptions& options);

/// Lines on stderr, and a progress line for each disk.
class ConsoleReporter {
 public:
  explicit ConsoleReporter(bool quiet);
  ~ConsoleReporter();
  const backup::Reporter& reporter() const { return reporter_; }
  void tick();

 private:
  class Display;
  std::unique_ptr<Display> display_;
  backup::Reporter reporter_;
};

}  // namespace nbdelta::client
