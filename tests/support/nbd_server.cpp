#include "tests/support/nbd_server.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cctype>
#include <cerrno>
#include <filesystem>
#include <thread>

#include "base/error.hpp"

namespace nbdelta::testing {
namespace {

constexpr std::chrono::milliseconds kStartTimeout{30'000};
constexpr std::string_view kSanitizerPreload = NBDELTA_SANITIZER_PRELOAD;

std::string built(std::string_view path, std::string_view what) {
  if (path.empty())
    fail(ENOENT, "this build has no {}", what);
  return std::string(path);
}

/// Everything but the unreserved characters of RFC 3986 as %XX.
std::string percent_encoded(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || std::string_view("-._~").find(c) != std::string_view::npos)
      result += c;
    else
      result += fmt::format("%{:02X}", byte);
  }
  return result;
}

}  // namespace

Command nbdkit_command() {
  const std::string nbdkit = find_program("nbdkit");
  if (kSanitizerPreload.empty())
    return {nbdkit};
  // The runtime's leak check would report nbdkit's own.
  return {"env", fmt::format("LD_PRELOAD={}", kSanitizerPreload), "ASAN_OPTIONS=detect_leaks=0",
          "TSAN_OPTIONS=suppressions=" NBDELTA_TSAN_SUPPRESSIONS, nbdkit};
}

std::string delta_plugin() {
  return built(NBDELTA_PLUGIN, "nbdkit-delta-plugin");
}
std::string nbdelta_program() {
  return built(NBDELTA_CLIENT, "nbdelta");
}

NbdServer::NbdServer(std::unique_ptr<TempFolder> folder)
    : folder_(std::move(folder)), socket_(*folder_ / "socket"), pid_file_(*folder_ / "pid") {}

NbdServer NbdServer::delta(const Command& parameters, const Command& options) {
  return nbdkit(delta_plugin(), parameters, options);
}

NbdServer NbdServer::nbdkit(const std::string& plugin, const Command& parameters,
                            const Command& options) {
  NbdServer server(std::make_unique<TempFolder>());
  Command command = joined(
      nbdkit_command(), {"--foreground", "--unix", server.socket_, "--pidfile", server.pid_file_});
  command = joined(std::move(command), options);
  command.push_back(plugin);
  server.start(joined(std::move(command), parameters));
  return server;
}

NbdServer NbdServer::qemu_nbd(const Command& arguments) {
  NbdServer server(std::make_unique<TempFolder>());
  server.start(joined({"qemu-nbd", "--persistent", "--shared=0", "--socket=" + server.socket_,
                       "--pid-file=" + server.pid_file_},
                      arguments));
  return server;
}

NbdServer NbdServer::storage_daemon(const Command& arguments) {
  NbdServer server(std::make_unique<TempFolder>());
  Command command{"qemu-storage-daemon", "--pidfile", server.pid_file_, "--nbd-server",
                  "addr.type=unix,addr.path=" + server.socket_ + ",max-connections=0"};
  server.start(joined(std::move(command), arguments));
  return server;
}

/// All of these servers write the file with their process id once they listen.
void NbdServer::start(const Command& command) {
  process_ = std::make_unique<Background>(command);
  const auto deadline = std::chrono::steady_clock::now() + kStartTimeout;
  std::error_code missing;
  while (std::filesystem::file_size(pid_file_, missing) == 0 || missing) {
    const auto ended = process_->wait(std::chrono::milliseconds(2));
    if (!ended && std::chrono::steady_clock::now() < deadline)
      continue;
    const Outcome outcome = ended ? *ended : process_->stop();
    process_.reset();
    fail(EIO, "{}: {} (exit status {}); it wrote:\n{}{}", to_string(command),
         ended ? "ended instead of serving" : "does not serve", outcome.status, outcome.out,
         outcome.err);
  }
}

std::string NbdServer::uri(std::string_view export_name) const {
  return fmt::format("nbd+unix:///{}?socket={}", percent_encoded(export_name), socket_);
}

Outcome NbdServer::stop() {
  Outcome outcome = process_->stop();
  process_.reset();
  return outcome;
}

NbdServer::~NbdServer() {
  if (!process_)
    return;
  const bool ended_early = !process_->running();
  const Outcome outcome = process_->stop();
  if (outcome.status != 0 || ended_early)
    ADD_FAILURE() << to_string(process_->command()) << ": "
                  << (ended_early ? "ended by itself" : "did not end well") << ", exit status "
                  << outcome.status << "; it wrote:\n"
                  << outcome.out << outcome.err;
}

Outcome try_delta(const Command& parameters) {
  const Command command =
      joined(nbdkit_command(), {"--unix", "-", "--run", "true", delta_plugin()});
  return run(joined(command, parameters));
}

}  // namespace nbdelta::testing
