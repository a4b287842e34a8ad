#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <string>

#include "client/backup/options.hpp"
#include "client/backup_command.hpp"
#include "client/check_start_command.hpp"
#include "client/exit_status.hpp"
#include "client/external_commands.hpp"
#include "client/guardian_command.hpp"
#include "client/map_command.hpp"
#include "client/pull_command.hpp"
#include "client/recover_command.hpp"
#include "client/say.hpp"
#include "client/status_command.hpp"
#include "client/target/open_target.hpp"

namespace {

using namespace nbdelta::client;  // NOLINT(google-build-using-namespace): this is its main

int report(ExitStatus status, const std::exception& error) {
  say("nbdelta: {}\n", error.what());
  return status;
}

int run(int argc, char** argv) {
  CLI::App app("nbdelta: incremental backup of QEMU disks, straight from the storage", "nbdelta");
  app.set_version_flag("--version", "nbdelta " NBDELTA_VERSION);
  app.require_subcommand(1);
  const std::map<std::string, std::function<int()>> commands{
      {"backup", add_backup_command(app)},     {"begin", add_begin_command(app)},
      {"end", add_end_command(app)},           {"recover", add_recover_command(app)},
      {"status", add_status_command(app)},     {"check-start", add_check_start_command(app)},
      {"pull", add_pull_command(app)},         {"map", add_map_command(app)},
      {"guardian", add_guardian_command(app)}, {"commit-guard", add_commit_guard_command(app)}};
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kUsage;
  }
  return commands.at(app.get_subcommands().front()->get_name())();
}

}  // namespace

int main(int argc, char** argv) {
  // A lost connection and a file too large are errors of a call, not the end of the process.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return run(argc, argv);
  } catch (const target::UsageError& error) {
    return report(kUsage, error);
  } catch (const target::TargetRefused& error) {
    return report(kRefused, error);
  } catch (const backup::Refused& error) {
    return report(kRefused, error);
  } catch (const std::exception& error) {
    return report(kFailed, error);
  }
}
