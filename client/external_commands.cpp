#include "client/external_commands.hpp"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <memory>

#include "client/backup/session.hpp"
#include "client/console.hpp"
#include "client/exit_status.hpp"
#include "client/guest_options.hpp"
#include "client/json_text.hpp"
#include "client/run_session.hpp"
#include "client/stdout.hpp"
#include "client/target/open_target.hpp"

namespace nbdelta::client {
namespace {

using backup::Session;

struct BeginOptions {
  GuestOptions guest;
  std::string socket_dir;
  std::string listen;
  std::string tls_certificates;
};

struct EndOptions {
  GuestOptions guest;
  bool success = false;
  bool failure = false;
};

backup::Listen interpret_listen(const BeginOptions& options) {
  backup::Listen listen;
  listen.tls_certificates = options.tls_certificates;
  if (options.listen.empty()) {
    listen.socket = options.socket_dir.empty()
                        ? std::filesystem::path(options.guest.qmp).parent_path().string()
                        : options.socket_dir;
    if (listen.socket.empty())
      listen.socket = ".";
    std::error_code error;
    listen.socket = std::filesystem::canonical(listen.socket, error).string();
    if (error)
      throw target::UsageError(
          error.value(), fmt::format("--socket-dir {}: {}", options.socket_dir, error.message()));
    return listen;
  }
  const std::size_t colon = options.listen.rfind(':');
  const std::string port =
      colon == std::string::npos ? std::string() : options.listen.substr(colon + 1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), listen.port);
  if (error != std::errc() || end != port.data() + port.size() || listen.port == 0)
    throw target::UsageError(
        EINVAL,
        fmt::format("--listen {}: expected HOST:PORT, as in 0.0.0.0:10809", options.listen));
  listen.host = options.listen.substr(0, colon);
  if (listen.host.starts_with('[') && listen.host.ends_with(']'))
    listen.host = listen.host.substr(1, listen.host.size() - 2);
  return listen;
}

int run_begin_command(const BeginOptions& options) {
  backup::Options session_options = options.guest.interpret();
  session_options.external = true;
  session_options.listen = interpret_listen(options);
  GuestOptions::check_text("--socket-dir", session_options.listen.socket);
  GuestOptions::check_text("--listen", session_options.listen.host);
  ConsoleReporter console(options.guest.quiet);
  return run_session(
      options.guest,
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        Session session(environment, session_options, console.reporter());
        const std::vector<backup::Exported> exports = co_await session.begin();
        qapi::json::array disks;
        for (const backup::Exported& exported : exports)
          disks.push_back(qapi::json::object{{"name", exported.disk},
                                             {"type", exported.type},
                                             {"size", exported.size},
                                             {"uri", exported.uri}});
        qapi::json::array warnings;
        for (const std::string& warning : session.warnings())
          warnings.push_back(qapi::json::value(warning));
        const qapi::json::object begun{{"result", "begun"},
                                       {"consistency", session.manifest().consistency},
                                       {"window", qapi::to_json(session.manifest().window)},
                                       {"disks", std::move(disks)},
                                       {"warnings", std::move(warnings)}};
        try {
          print_stdout(pretty(begun));
        } catch (const Error& error) {
          fail(error.error_number(),
               "{}; the session is open all the same: 'nbdelta end --failure' ends it",
               error.what());
        }
      },
      [&] { console.tick(); });
}

int run_end_command(const EndOptions& options) {
  if (options.success == options.failure)
    throw target::UsageError(EINVAL, "say --success or --failure");
  const backup::Options session_options = options.guest.interpret();
  ConsoleReporter console(options.guest.quiet);
  int status = kDone;
  const int interrupted = run_session(
      options.guest,
      [&](backup::Environment& environment) -> asio::awaitable<void> {
        Session session(environment, session_options, console.reporter());
        const backup::Settled settled = co_await session.end(
            options.success ? Session::Outcome::success : Session::Outcome::failure);
        status = print_settled(settled, options.guest);
      },
      [&] { console.tick(); });
  return interrupted != 0 ? interrupted : status;
}

}  // namespace

std::function<int()> add_begin_command(CLI::App& app) {
  const auto options = std::make_shared<BeginOptions>();
  CLI::App* command = app.add_subcommand(
      "begin", "Freeze, switch, thaw, and export what has changed to other software");
  options->guest.add_to(*command, GuestOptions::Needs::guest_and_repository);
  options->guest.add_session_options(*command);
  command
      ->add_option("--socket-dir", options->socket_dir,
                   "folder of the exports' Unix sockets; default: that of --qmp")
      ->type_name("FOLDER");
  command
      ->add_option("--listen", options->listen,
                   "TCP instead; each further disk takes the next port")
      ->type_name("HOST:PORT");
  command
      ->add_option("--tls-certificates", options->tls_certificates,
                   "require TLS; a folder as nbdkit-tls(1) describes")
      ->type_name("FOLDER");
  command->footer(R"(Example:
  nbdelta begin --qmp /run/vm1.qmp --agent /run/vm1.qga --vm vm1 --to /var/lib/nbdelta
  qemu-img convert -f raw -O qcow2 'nbd+unix:///image?socket=…' full.qcow2
  nbdelta end --success --qmp /run/vm1.qmp --vm vm1 --to /var/lib/nbdelta)");
  return [options] { return run_begin_command(*options); };
}

std::function<int()> add_end_command(CLI::App& app) {
  const auto options = std::make_shared<EndOptions>();
  CLI::App* command = app.add_subcommand("end", "End what 'nbdelta begin' has begun");
  options->guest.add_to(*command, GuestOptions::Needs::guest_and_repository);
  command->add_flag("--success", options->success,
                    "the copies are safe: the next session shows what changes from now on");
  command->add_flag("--failure", options->failure,
                    "they are not: the next session shows these changes again, and what follows");
  return [options] { return run_end_command(*options); };
}

}  // namespace nbdelta::client
