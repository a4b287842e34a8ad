#include "sim/run_command.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <boost/asio/signal_set.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/exit_status.hpp"
#include "client/say.hpp"
#include "sim/check.hpp"
#include "sim/live_qemu.hpp"
#include "sim/live_recorder.hpp"
#include "sim/unawaited.hpp"

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;
using client::say;

struct RunOptions {
  std::string scenario;
  std::string folder;
  std::optional<std::string> record;  // a file for the report
};

/// The scenario's guest in a live QEMU.
class LiveGuest {
 public:
  LiveGuest(asio::io_context& loop, Clock& clock, const LiveFolder& folder,
            const Scenario& scenario)
      : loop_(&loop),
        clock_(&clock),
        qemu_(loop, clock, folder, scenario),
        guest_(loop.get_executor(), clock, qemu_, scenario.guest, scenario.seed) {
    qemu_.agent().freeze = [] {
      FreezeBehaviour behaviour;
      behaviour.time = {};
      return behaviour;
    };
    qemu_.agent().quiesce = [this] { return guest_.freeze(); };
    qemu_.agent().changed = [this](bool frozen) {
      if (!frozen)
        guest_.thaw();
    };
    guest_.failed = [this](const std::exception_ptr& error) {
      try {
        std::rethrow_exception(error);
      } catch (const Error& failure) {
        say("nbdelta-sim: the guest is paused: {}\n", failure.what());
      }
      asio::co_spawn(*loop_, resume_later(), kUnawaited);
    };
  }

  void record(const std::string& file, const Scenario& scenario) {
    recorder_.emplace(*loop_, *clock_, qemu_, guest_, file, scenario);
  }

  void start() {
    qemu_.start();
    guest_.start();
  }

  /// SIGTERM: clients are told, then QEMU ends.
  void end(const std::function<void()>& ended) {
    qemu_.qemu().emit("SHUTDOWN", {{"guest", false}, {"reason", "host-signal"}});
    asio::post(*loop_, [this, ended] {
      if (recorder_)
        recorder_->end();
      guest_.stop();
      qemu_.end();
      ended();
    });
  }

 private:
  /// As whoever watches over a guest with werror=enospc: the write is tried again.
  asio::awaitable<void> resume_later() {
    co_await clock_->wait(1s);
    qemu_.qemu().go_on_after_error();
    guest_.resume();
  }

  asio::io_context* loop_;
  Clock* clock_;
  LiveQemu qemu_;
  Guest guest_;
  std::optional<LiveRecorder> recorder_;
};

int run(const RunOptions& options) {
  const Scenario scenario = read_scenario(options.scenario);
  if (options.record)
    check_run_place(*options.record);
  std::error_code status;
  std::filesystem::create_directories(options.folder, status);
  if (status || !std::filesystem::is_directory(options.folder, status))
    fail(ENOTDIR, "--dir '{}' is no folder, and none can be made: {}", options.folder,
         status ? status.message() : "something else is there");
  const LiveFolder folder{std::filesystem::canonical(options.folder).string()};
  asio::io_context loop;
  client::RealClock clock;
  LiveGuest guest(loop, clock, folder, scenario);
  if (options.record)
    guest.record(*options.record, scenario);
  guest.start();
  asio::signal_set signals(loop, SIGINT, SIGTERM);
  signals.async_wait([&](const boost::system::error_code& error, int /*number*/) {
    if (!error)
      guest.end([] {
        // Coroutines that wait for something are not unwound: they end with the process.
        std::fflush(nullptr);
        ::_exit(client::kDone);
      });
  });
  fmt::print("ready: --qmp {} --agent {}\n", folder.qmp(), folder.agent());
  std::fflush(stdout);
  loop.run();
  return client::kDone;
}

struct CheckOptions {
  std::string folder;
  bool after_crash = false;
  std::vector<std::string> places;
};

int check(const CheckOptions& options) {
  const std::string record = LiveFolder{options.folder}.record();
  const std::vector<CheckedPoint> points = points_at(options.places);
  bool all = true;
  for (const CheckResult& result :
       (options.after_crash ? check_after_crash : check_points)(record, points)) {
    fmt::print("{}: {}\n", result.name, result.text);
    all = all && result.exact;
  }
  return all ? client::kDone : client::kFailed;
}

constexpr const char* kRunFooter = R"(Example:
  nbdelta-sim run --scenario database.json --dir /tmp/guest
  nbdelta backup --qmp /tmp/guest/qmp.sock --agent /tmp/guest/qga.sock --vm vm1 --to /backup
  nbdelta-sim check --dir /tmp/guest /backup/vm1

SIGTERM ends the guest as QEMU's end does; SIGKILL is a crash. Run again, it goes on with the images
in the folder; 'nbdelta recover --offline IMAGE' comes first where an overlay lies over one.)";

constexpr const char* kCheckFooter = R"(Example:
  nbdelta-sim check --dir /tmp/guest /backup/vm1 vda=/tmp/guest/vda.qcow2

A restore point must show all disks of its session's switch at that instant, byte for byte (the guest's
others are named), an image the instant of any switch, or of the record's end. Exit status: 0 all do; 1
one does not, or nothing was there to be compared.)";

}  // namespace

std::function<int()> add_run_command(CLI::App& app) {
  const auto options = std::make_shared<RunOptions>();
  CLI::App* command = app.add_subcommand("run", "Runs a guest: sockets and images in a folder");
  command->add_option("--scenario", options->scenario, "what the guest is and does")
      ->type_name("FILE")
      ->required();
  command->add_option("--dir", options->folder, "where its files are; made where it is not there")
      ->type_name("FOLDER")
      ->required();
  command
      ->add_option("--record", options->record,
                   "what happens in backups is written there, for the report")
      ->type_name("FILE");
  command->footer(kRunFooter);
  return [options] { return run(*options); };
}

std::function<int()> add_check_command(CLI::App& app) {
  const auto options = std::make_shared<CheckOptions>();
  CLI::App* command =
      app.add_subcommand("check", "Compares images with what a guest wrote to its disks");
  command->add_option("--dir", options->folder, "of the guest")->type_name("FOLDER")->required();
  command->add_flag("--after-crash", options->after_crash,
                    "the guest was killed: what it had not flushed may be there or not");
  command
      ->add_option("PLACE", options->places,
                   "a restore point, a folder with some, or DISK=IMAGE (IMAGE.raw is raw)")
      ->required();
  command->footer(kCheckFooter);
  return [options] { return check(*options); };
}

}  // namespace nbdelta::sim
