#include "tests/client/session/held_backup.hpp"

#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "base/error.hpp"
#include "tests/client/session/processes.hpp"

namespace nbdelta::testing {

using namespace std::chrono_literals;

HeldBackup::HeldBackup(const Points& points, const Command& more) {
  // Every read takes a while: none has ended when the servers are stopped.
  const std::string nbdkit = programs_ / "nbdkit";
  std::ofstream(nbdkit) << "#!/bin/sh\nexec " << find_program("nbdkit")
                        << " --filter=delay \"$@\" delay-read=700ms\n";
  std::filesystem::permissions(nbdkit, std::filesystem::perms::owner_all);
  Command words = points.command("backup", {"--quiesce", "no", "--json"});
  words.insert(words.end(), more.begin(), more.end());
  const std::string path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  ProcessOptions options;
  options.environment = {"PATH=" + programs_.path() + ":" + path};
  nbdelta_.emplace(words, options);
  const auto deadline = std::chrono::steady_clock::now() + kDefaultTimeout;
  while (points.phase() != "export") {
    if (!nbdelta_->running() || std::chrono::steady_clock::now() > deadline)
      fail(EIO, "the backup does not get to its pull: {}", nbdelta_->err());
    std::this_thread::sleep_for(1ms);
  }
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
  const auto outcome = nbdelta_->wait(kDefaultTimeout);
  if (!outcome)
    fail(ETIMEDOUT, "the backup does not end: {}", nbdelta_->err());
  return *outcome;
}

}  // namespace nbdelta::testing
