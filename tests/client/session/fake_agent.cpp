#include "tests/client/session/fake_agent.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cstring>

#include "base/error.hpp"

namespace nbdelta::testing {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;

void send_all(int fd, const std::string& text) {
  ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
}

std::string returned(const json::value& value) {
  return json::serialize(json::object{{"return", value}}) + "\n";
}

std::string error(const std::string& description) {
  return json::serialize(
             json::object{{"error", {{"class", "GenericError"}, {"desc", description}}}}) +
         "\n";
}

}  // namespace

FakeAgent::FakeAgent(std::string path, AgentFaults faults)
    : path_(std::move(path)),
      faults_(std::move(faults)),
      listener_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)),
      frozen_(faults_.frozen_already) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
  if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener_.get(), 4) != 0)
    fail_errno("{}", path_);
  thread_ = std::thread([this] { run(); });
}

FakeAgent::~FakeAgent() {
  ending_ = true;
  thread_.join();
}

std::vector<std::string> FakeAgent::log() const {
  const std::lock_guard guard(mutex_);
  return log_;
}

int FakeAgent::count(const std::string& command) const {
  const std::lock_guard guard(mutex_);
  return static_cast<int>(std::count(log_.begin(), log_.end(), command));
}

void FakeAgent::run() {
  while (!ending_) {
    pollfd waiting{listener_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 20) <= 0)
      continue;
    const FileDescriptor client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    while (!ending_ && serve(client.get())) {
    }
  }
}

/// Returns false where the client is gone, or is to be dropped.
bool FakeAgent::serve(int client) {
  std::string received;
  while (!ending_) {
    pollfd waiting{client, POLLIN, 0};
    if (::poll(&waiting, 1, 20) <= 0)
      continue;
    char buffer[4096];
    const ssize_t n = ::read(client, buffer, sizeof buffer);
    if (n <= 0)
      return false;
    received.append(buffer, static_cast<std::size_t>(n));
    for (std::size_t end = received.find('\n'); end != std::string::npos;
         end = received.find('\n')) {
      const std::string line = received.substr(0, end);
      received.erase(0, end + 1);
      if (!answer(client, line))
        return false;
    }
  }
  return false;
}

bool FakeAgent::answer(int client, const std::string& line) {
  const std::size_t start = line.rfind('\xff');
  const json::value request =
      json::parse(start == std::string::npos ? line : line.substr(start + 1));
  const std::string name(request.at("execute").as_string());
  {
    const std::lock_guard guard(mutex_);
    log_.push_back(name);
  }
  if (faults_.silent)
    return true;
  if (faults_.garbage) {
    send_all(client, "\x01{]garbage\n");
    return true;
  }
  std::this_thread::sleep_for(faults_.answers_late);
  if (name == "guest-sync-delimited") {
    send_all(client, "\xff" + returned(request.at("arguments").at("id")));
  } else if (name == "guest-fsfreeze-status") {
    send_all(client, returned(frozen_ ? "frozen" : "thawed"));
  } else if (name == "guest-info") {
    send_all(client, "{\"return\": {\"version\": \"" + faults_.version +
                         "\", \"supported_commands\": []}}\n");
  } else if (name == "guest-fsfreeze-freeze" || name == "guest-fsfreeze-freeze-list") {
    frozen_since_ = std::chrono::steady_clock::now();
    frozen_ = true;
    const auto end = frozen_since_ + faults_.freeze_takes;
    while (!ending_ && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(1ms);
    if (faults_.dies_in_freeze) {
      faults_.dies_in_freeze = false;
      return false;
    }
    if (!faults_.freeze_answer.empty())
      send_all(client, faults_.freeze_answer);
    else if (faults_.freeze_fails_after)
      send_all(client, error("failed to freeze /mnt: Input/output error"));
    else if (!faults_.freeze_never_answers)
      send_all(client, returned(faults_.freezes_nothing ? 0 : 2));
  } else if (name == "guest-fsfreeze-thaw" && faults_.thaws_that_fail > 0) {
    --faults_.thaws_that_fail;
    send_all(client, error("cannot thaw"));
  } else if (name == "guest-fsfreeze-thaw") {
    if (frozen_.exchange(false))
      frozen_for_ = std::chrono::steady_clock::now() - frozen_since_;
    send_all(client, returned(faults_.freezes_nothing ? 0 : 2));
  } else if (name == "guest-exec") {
    send_all(client, returned({{"pid", 5}}));
  } else if (name == "guest-exec-status") {
    send_all(client, returned({{"exited", true}, {"exitcode", 0}}));
  } else {
    send_all(
        client,
        json::serialize(json::object{{"error",
                                      {{"class", "CommandNotFound"},
                                       {"desc", "The command " + name + " has not been found"}}}}) +
            "\n");
  }
  return true;
}

}  // namespace nbdelta::testing
