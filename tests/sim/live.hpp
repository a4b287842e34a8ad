#pragma once

#include <signal.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/process.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {

/// `nbdelta-sim run` on a scenario, and a repository for the backups of its guest. For one thread.
class LiveSim {
 public:
  /// `more`: options of `run`.
  explicit LiveSim(const std::string& scenario, Command more = {}) : more_(std::move(more)) {
    std::ofstream(folder_ / "scenario.json") << scenario;
    start();
  }

  std::string guest() const { return folder_ / "guest"; }
  std::string image(const std::string& name) const { return guest() + "/" + name; }
  std::string repository() const { return folder_ / "repo"; }
  std::string points() const { return repository() + "/vm"; }
  std::string copy(const std::string& name) const { return folder_ / name; }
  Background& process() { return *process_; }

  Command run_command() const {
    Command words{NBDELTA_SIM, "run", "--scenario", folder_ / "scenario.json", "--dir", guest()};
    words.insert(words.end(), more_.begin(), more_.end());
    return words;
  }
  void start() {
    process_ = std::make_unique<Background>(run_command());
    wait_until("its start", [&] { return process_->out().find("ready") != std::string::npos; });
  }
  Outcome stop() {
    Outcome outcome = process_->stop();
    process_.reset();
    return outcome;
  }
  void kill() {
    process_->signal(SIGKILL);
    process_->wait(std::chrono::seconds(10));
    process_.reset();
  }

  /// `nbdelta NAME …` for this guest.
  Command command(const std::string& name, const Command& more = {}) const {
    Command words{nbdelta_program(), name, "--vm", "vm", "--to", repository()};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  Command connected(const std::string& name, const Command& more = {}) const {
    Command words =
        command(name, {"--qmp", guest() + "/qmp.sock", "--agent", guest() + "/qga.sock"});
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  /// A backup that must succeed; its JSON.
  boost::json::value backup(const Command& more = {}) const {
    Command words = connected("backup", {"--json", "--quiet"});
    words.insert(words.end(), more.begin(), more.end());
    return boost::json::parse(run_ok(words));
  }

  Outcome check(const Command& places) const {
    Command words{NBDELTA_SIM, "check", "--dir", guest()};
    words.insert(words.end(), places.begin(), places.end());
    return run(words);
  }
  /// "" where all places are exact.
  std::string wrong(const Command& places) const {
    const Outcome outcome = check(places);
    return outcome.ok() ? "" : outcome.out + outcome.err;
  }

  /// What qemu-img says against any qcow2 image of the guest.
  std::string image_complaints() const {
    std::string all;
    for (const auto& entry : std::filesystem::directory_iterator(guest()))
      if (entry.path().extension() == ".qcow2" &&
          !entry.path().filename().string().starts_with("nbdelta-current-"))
        all += check_complaints(entry.path());
    return all;
  }

  /// Lines of the record.
  std::vector<std::string> record() const {
    std::ifstream in(guest() + "/record.txt");
    std::vector<std::string> lines;
    for (std::string line; std::getline(in, line) && !in.eof();)
      lines.push_back(line);
    return lines;
  }
  void wait_for_writes(std::size_t count) const {
    const std::size_t wanted = record().size() + count;
    wait_until("the guest's next write", [&] { return record().size() >= wanted; });
  }
  /// Throws where that does not come within a minute.
  template <class Holds>
  void wait_until(std::string_view what, Holds holds) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (!holds()) {
      if (!process_->running() || std::chrono::steady_clock::now() > deadline)
        fail(ETIMEDOUT, "nbdelta-sim: {} does not come: {}", what, process_->err());
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

 private:
  TempFolder folder_;
  Command more_;
  std::unique_ptr<Background> process_;
};

}  // namespace nbdelta::testing
