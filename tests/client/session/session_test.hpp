#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "tests/client/client_run.hpp"
#include "tests/client/session/machine.hpp"
#include "tests/client/session/processes.hpp"
#include "tests/support/qemu.hpp"

namespace nbdelta::testing {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

/// Of the session that is open.
inline std::string journal_phase(const std::string& vm_folder) {
  const std::string text = text_of_file(vm_folder + "/nbdelta-session.json");
  return text.empty() ? "no journal"
                      : std::string(boost::json::parse(text).at("phase").as_string());
}

/// A repository, and copies of what each disk held at each of its restore points.
class Points {
 public:
  explicit Points(Machine& machine, const std::string& name = "repo")
      : machine_(&machine), qmp_(machine.qmp()), folder_(machine.folder() + "/" + name) {}

  /// From now on QEMU is spoken to there.
  void connect_to(const std::string& qmp) { qmp_ = qmp; }

  const std::string& repository() const { return folder_; }
  std::string vm_folder() const { return folder_ + "/vm"; }

  /// Options that every session command takes.
  Command options(const Command& more = {}) const {
    Command words{"--qmp", qmp_, "--vm", "vm", "--to", folder_};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  Command command(const std::string& name, const Command& more = {}) const {
    Command words{name};
    for (const std::string& word : options(more))
      words.push_back(word);
    return nbdelta_command(words);
  }

  /// Of an image whose QEMU has ended.
  Command offline_recovery(const std::string& image) const {
    return nbdelta_command({"recover", "--vm", "vm", "--to", folder_, "--offline", image});
  }

  /// A backup that must succeed; its JSON. Remembers what the disks hold.
  boost::json::value backup(const Command& more = {}) {
    Command words = command("backup", {"--json", "--quiesce", "no"});
    words.insert(words.end(), more.begin(), more.end());
    boost::json::value result = boost::json::parse(run_ok(words));
    remember(std::string(result.at("point").as_string()));
    return result;
  }

  /// The disks hold what restore point `point` must show.
  void remember(const std::string& point) {
    for (const MachineDisk& disk : machine_->disks()) {
      const std::string copy = folder_ + "-" + disk.name + "-" + point;
      run_ok({"cp", "--sparse=always", machine_->model(disk), copy});
      expected_[point][disk.name] = copy;
    }
  }

  /// Every restore point equals what was remembered; the chain is sound. A file that was found
  /// right and has not been written to since is not read again.
  void check() {
    for (const auto& [point, disks] : expected_) {
      for (const auto& [name, copy] : disks) {
        const std::string file = vm_folder() + "/" + point + "/" + name + ".qcow2";
        std::error_code is_missing;
        const auto written = std::filesystem::last_write_time(file, is_missing);
        const auto [checked, is_new] = checked_.emplace(file, written);
        if (!is_missing && !is_new && checked->second == written)
          continue;
        checked->second = written;
        EXPECT_EQ(difference(file, "qcow2", copy, "raw"), "") << file;
        EXPECT_EQ(check_complaints(file), "") << file;
      }
    }
  }

  /// Of the session's journal.
  std::string phase() const { return journal_phase(vm_folder()); }

 private:
  Machine* machine_;
  std::string qmp_;
  std::string folder_;
  std::map<std::string, std::map<std::string, std::string>> expected_;
  std::map<std::string, std::filesystem::file_time_type> checked_;
};

inline std::string type_of(const boost::json::value& manifest, std::size_t disk = 0) {
  return std::string(manifest.at("disks").at(disk).at("type").as_string());
}

}  // namespace nbdelta::testing
