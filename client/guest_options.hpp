#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <string_view>
#include <vector>

#include "client/backup/options.hpp"

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

  /// Throws target::UsageError for what cannot stand in a journal.
  static void check_text(std::string_view option, const std::string& text);

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

}  // namespace nbdelta::client
