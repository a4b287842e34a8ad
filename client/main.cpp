#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>

#include "client/exit_status.hpp"
#include "client/map_command.hpp"
#include "client/pull_command.hpp"
#include "client/say.hpp"
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
  const std::function<int()> pull = add_pull_command(app);
  const std::function<int()> map = add_map_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kUsage;
  }
  return app.got_subcommand("pull") ? pull() : map();
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
  } catch (const std::exception& error) {
    return report(kFailed, error);
  }
}
