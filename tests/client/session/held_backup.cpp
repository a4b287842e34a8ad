#include "tests/client/session/held_backup.hpp"

#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <thread>

#include "base/error.hpp"
#include "tests/client/session/processes.hpp"

namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

void wait_for(Background& nbdelta, const std::string& what, const std::function<bool()>& there) {
  const auto deadline = std::chrono::steady_clock::now() + kDefaultTimeout;
  while (!there()) {
    if (!nbdelta.running() || std::chrono::steady_clock::now() > deadline)
      fail(EIO, "the backup does not get to its {}: {}", what, nbdelta.err());
    std::this_thread::sleep_for(1ms);
  }
}

Outcome end_of(Background& nbdelta) {
  const auto outcome = nbdelta.wait(kDefaultTimeout);
  if (!outcome)
    fail(ETIMEDOUT, "the backup does not end: {}", nbdelta.err());
  return *outcome;
}

}  // namespace

NbdkitInstead::NbdkitInstead(const std::string& script) {
  const std::string path = folder_ / "nbdkit";
  std::ofstream(path) << "#!/bin/sh\nnbdkit=" << find_program("nbdkit")
                      << "\nfolder=" << folder_.path() << "\n"
                      << script << "\n";
  fs::permissions(path, fs::perms::owner_all);
}

ProcessOptions NbdkitInstead::options() const {
  const std::string path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  ProcessOptions options;
  options.environment = {"PATH=" + folder_.path() + ":" + path};
  return options;
}

// Every read takes a while: none has ended when the servers are stopped. With as many threads as
// reads they all wait at the same time.
HeldBackup::HeldBackup(const Points& points, const Command& more)
    : nbdkit_(R"(exec "$nbdkit" --filter=delay "$@" --threads=16 delay-read=700ms)") {
  const Command words = points.command("backup", {"--quiesce", "no", "--json"});
  nbdelta_.emplace(joined(words, more), nbdkit_.options());
  wait_for(*nbdelta_, "pull", [&] { return points.phase() == "export"; });
  held_ = children_of(nbdelta_->pid(), "nbdkit");
  if (held_.empty())
    fail(ESRCH, "the backup's pull has ended already");
  for (const pid_t server : held_)
    ::kill(server, SIGSTOP);
}

HeldBackup::~HeldBackup() {
  resume();
}

void HeldBackup::resume() {
  for (const pid_t server : held_)
    ::kill(server, SIGCONT);
  held_.clear();
}

Outcome HeldBackup::release() {
  resume();
  return end_of(*nbdelta_);
}

HeldExport::HeldExport(const Command& backup)
    : nbdkit_(R"(: >"$folder/held"
while [ -e "$folder" ] && [ ! -e "$folder/go" ]; do sleep 0.02; done
exec "$nbdkit" "$@")"),
      nbdelta_(backup, nbdkit_.options()) {
  wait_for(nbdelta_, "exports", [&] { return fs::exists(nbdkit_.folder() + "/held"); });
}

HeldExport::~HeldExport() {
  resume();
}

void HeldExport::resume() {
  std::ofstream(nbdkit_.folder() + "/go").close();
}

Outcome HeldExport::release() {
  resume();
  return end_of(nbdelta_);
}

}  // namespace nbdelta::testing
