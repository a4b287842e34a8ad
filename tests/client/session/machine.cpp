#include "tests/client/session/machine.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.hpp"
#include "tests/client/session/processes.hpp"
#include "tests/support/environment_variable.hpp"
#include "tests/support/qemu.hpp"

namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using namespace std::chrono_literals;

constexpr std::uint64_t kSector = 512;

/// QEMU's name of what the device writes through.
std::string back_end(const MachineDisk& disk) {
  return "/machine/peripheral/" + disk.name + "/virtio-backend";
}

/// One for the whole process: several machines may live.
const std::string& temporary_folder() {
  static const TempFolder folder;
  static const EnvironmentVariable variable("TMPDIR", folder.path());
  return folder.path();
}

}  // namespace

Machine::Machine(std::vector<MachineDisk> disks, Command extra_arguments)
    : temporary_(temporary_folder()),
      disks_(std::move(disks)),
      extra_arguments_(std::move(extra_arguments)) {
  for (const MachineDisk& disk : disks_) {
    if (disk.backing.empty()) {
      create_image(image(disk), disk.format, disk.size, disk.options);
      create_image(model(disk), "raw", disk.size);
    } else {
      create_overlay(image(disk), disk.backing, "qcow2", 0, disk.options);
      qemu_img({"convert", "-f", "qcow2", "-O", "raw", image(disk), model(disk)});
    }
  }
  start();
}

Machine::~Machine() {
  kill_servers_of(folder());
}

std::string Machine::image(const MachineDisk& disk) const {
  const std::string name = disk.name + "." + disk.format;
  return disk.folder.empty() ? folder_ / name : disk.folder + "/" + name;
}

std::string Machine::model(const MachineDisk& disk) const {
  return folder_ / (disk.name + ".model");
}

std::string Machine::current(const MachineDisk& disk) const {
  std::ifstream file(folder_ / ("nbdelta-current-" + disk.name + "." + disk.format));
  std::string overlay;
  return std::getline(file, overlay) ? overlay : image(disk);
}

std::string Machine::difference_from_model(const MachineDisk& disk) const {
  const std::string path = current(disk);
  return difference(path, path == image(disk) ? disk.format : "qcow2", model(disk), "raw");
}

Command Machine::disk_arguments(const MachineDisk& disk) const {
  const std::string device = fmt::format("virtio-blk-pci,drive={0},id={0}", disk.name);
  const std::string path = current(disk);
  const std::string format = path == image(disk) ? disk.format : "qcow2";
  if (disk.by_drive)
    return {"-drive",
            fmt::format("if=none,id={},format={},discard=unmap,file={}", disk.name, format, path),
            "-device", device};
  return {"-blockdev",
          fmt::format("driver={0},node-name={1},discard=unmap,file.driver=file,"
                      "file.discard=unmap,file.filename={2}{3}",
                      format, disk.name, path, disk.direct ? ",cache.direct=on" : ""),
          "-device", device};
}

void Machine::start(const Command& environment) {
  Command words{find_program("qemu-system-x86_64"),
                "-nodefaults",
                "-display",
                "none",
                "-accel",
                "tcg",
                "-m",
                "16",
                "-qmp",
                "unix:" + qmp() + ",server=on,wait=off",
                "-qmp",
                "unix:" + (folder_ / "control") + ",server=on,wait=off"};
  for (const MachineDisk& disk : disks_)
    for (const std::string& word : disk_arguments(disk))
      words.push_back(word);
  words.insert(words.end(), extra_arguments_.begin(), extra_arguments_.end());
  qemu_ = std::make_unique<Background>(
      words, ProcessOptions{.input = {}, .environment = environment, .folder = {}});
  const auto deadline = std::chrono::steady_clock::now() + kDefaultTimeout;
  while (!control_) {
    try {
      control_.emplace(folder_ / "control");
    } catch (const Error&) {
      if (!qemu_->running() || std::chrono::steady_clock::now() > deadline)
        fail(EIO, "QEMU did not start: {}", qemu_->err());
      std::this_thread::sleep_for(5ms);
    }
  }
  control_->read_line(kDefaultTimeout);
  command("qmp_capabilities");
}

void Machine::kill() {
  control_.reset();
  qemu_->signal(SIGKILL);
  qemu_->wait(kDefaultTimeout);
  qemu_.reset();
}

void Machine::quit() {
  command("quit");
  control_.reset();
  qemu_->wait(kDefaultTimeout);
  qemu_.reset();
}

json::value Machine::command(const std::string& name, const json::object& arguments) try {
  control_->send(json::serialize(json::object{{"execute", name}, {"arguments", arguments}}) + "\n");
  while (true) {
    const json::value answer = json::parse(control_->read_line(kDefaultTimeout));
    if (const json::value* value = answer.as_object().if_contains("return"))
      return *value;
    if (answer.as_object().contains("error"))
      return answer;
  }
} catch (const Error& error) {
  if (qemu_ && !qemu_->running())
    fail(error.error_number(), "{}: QEMU has ended: {}", error.what(), qemu_->err());
  throw;
}

void Machine::qemu_io_in_guest(const MachineDisk& disk, const std::string& what) {
  const json::value answer =
      command("human-monitor-command",
              {{"command-line", fmt::format("qemu-io -d {} \"{}\"", back_end(disk), what)}});
  if (!answer.is_string() || answer.as_string().find("rror") != json::string::npos ||
      answer.as_string().find("failed") != json::string::npos)
    ADD_FAILURE() << disk.name << ": " << what << ": " << answer;
}

void Machine::begin_write(const MachineDisk& disk, const std::string& what) {
  qemu_io_in_guest(disk, "aio_" + what);
  qemu_io(model(disk), "raw", {what});
}

std::int64_t Machine::acknowledged_writes(const MachineDisk& disk) {
  const json::value answer = command("query-blockstats");
  for (const json::value& each : answer.as_array())
    if (each.at("qdev").as_string() == back_end(disk))
      return each.at("stats").at("wr_operations").as_int64();
  fail(ENODEV, "{}: QEMU has no statistics of it", disk.name);
}

void Machine::write(const MachineDisk& disk, const std::string& what) {
  qemu_io_in_guest(disk, what);
  // A discarded range may read as what it was: the model is what QEMU says.
  if (what.starts_with("discard")) {
    qemu_io(model(disk), "raw", {"write -z " + what.substr(std::string("discard ").size())});
    return;
  }
  qemu_io(model(disk), "raw", {what});
}

void Machine::write_at_random(Random& random, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    const MachineDisk& disk = disks_[random.below(disks_.size())];
    const std::uint64_t length = kSector * (1 + random.below(random.chance(20) ? 2048 : 64));
    const std::uint64_t offset = kSector * random.below((disk.size - length) / kSector + 1);
    const std::uint64_t kind = random.below(8);
    if (kind == 0)
      write(disk, fmt::format("write -z {} {}", offset, length));
    else if (kind == 1)  // on a base without a backing file, whole clusters read zero afterwards
      write(disk, fmt::format("write -z -u {} {}", offset, length));
    else
      write(disk, fmt::format("write -P {} {} {}", 1 + random.below(255), offset, length));
  }
}

std::vector<std::string> Machine::nodes() {
  std::vector<std::string> names;
  const json::value answer = command("query-named-block-nodes", {{"flat", true}});
  for (const json::value& node : answer.as_array()) {
    std::string name(node.at("node-name").as_string());
    names.push_back(name.starts_with("#block") ? "#block" : name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> Machine::leftovers() {
  std::vector<std::string> found;
  if (qemu_) {
    for (const std::string& name : nodes())
      if (name.starts_with("nbdelta-"))
        found.push_back("node " + name);
    const json::value jobs = command("query-jobs");
    for (const json::value& job : jobs.as_array())
      found.push_back("job " + std::string(job.at("id").as_string()));
    const json::value exports = command("query-block-exports");
    for (const json::value& exported : exports.as_array())
      found.push_back("export " + std::string(exported.at("id").as_string()));
  }
  for (const auto& entry : fs::directory_iterator(folder()))
    if (entry.path().filename().string().starts_with("nbdelta-"))
      found.push_back("file " + entry.path().filename().string());
  for (const auto& entry : fs::directory_iterator(temporary_)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("nbdelta-") && !name.starts_with("nbdelta-test"))
      found.push_back("temporary " + name);
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace nbdelta::testing
