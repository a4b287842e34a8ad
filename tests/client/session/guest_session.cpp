#include "tests/client/session/guest_session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>

#include "tests/client/session/held_backup.hpp"

namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
namespace json = boost::json;
using Use = GuestDisk::Use;

constexpr std::uint64_t kDiskSize = std::uint64_t{96} << 20;
constexpr std::chrono::milliseconds kLongestBackup = 180s;

/// From a window in a manifest, in ms.
double at_ms(const json::value& window, const char* name) {
  const json::value* value = window.as_object().if_contains(name);
  return value == nullptr ? 0.0 : static_cast<double>(value->as_int64()) / 1000;
}

}  // namespace

GuestSession::GuestSession(std::vector<GuestDisk> disks, const GuestOptions& options)
    : disks_(std::move(disks)) {
  fs::create_directory(folder_ / "guest");
  for (GuestDisk& each : disks_) {
    each.path = folder_ / (each.name + "." + each.format);
    make_disk(each, kDiskSize);
  }
  guest_.emplace(folder_ / "guest", disks_, options);
  guest_->wait_until_ready();
}

Command GuestSession::command(const std::string& name, const Command& more) const {
  return joined(nbdelta_command({name, "--qmp", guest_->qmp(), "--agent", guest_->agent(), "--vm",
                                 "vm", "--to", repository()}),
                more);
}

Command GuestSession::backup_command(const Command& more) const {
  return joined(command("backup", {"--json"}), more);
}

json::value GuestSession::backup(const Command& more) {
  expect_point();
  const std::size_t log_before = guest_->operation_log().size();
  return took(run_ok(backup_command(more), {}, kLongestBackup), log_before);
}

json::value GuestSession::backup_beside_copies(const Command& more) {
  expect_point();
  const std::size_t log_before = guest_->operation_log().size();
  HeldExport held(backup_command(more));
  std::vector<GuestDisk> copies;
  for (const GuestDisk& disk : disks_)
    copies.push_back(copy_frozen(disk));
  const Outcome outcome = held.release();
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  json::value result = took(outcome.out, log_before);
  for (const GuestDisk& copy : copies)
    EXPECT_EQ(difference(fmt::format("{}/{}/{}.qcow2", vm_folder(), taken_.back().point, copy.name),
                         "qcow2", copy.path, copy.format),
              "")
        << taken_.back().point << ", " << copy.name;
  return result;
}

/// The base, and over it the overlay that was the guest's before: all but the newest.
GuestDisk GuestSession::copy_frozen(const GuestDisk& disk) const {
  std::vector<std::string> overlays;
  for (const std::string& name : leftovers())
    if (name.ends_with("-" + disk.name + ".qcow2") && !name.starts_with("nbdelta-current-"))
      overlays.push_back(name);
  std::sort(overlays.begin(), overlays.end());
  GuestDisk copy = disk;
  copy.path = folder_ / ("copy-" + disk.name + "." + disk.format);
  run_ok({"cp", "--sparse=always", disk.path, copy.path});
  if (overlays.size() < 2)
    return copy;
  const std::string upper = folder_ / ("copy-" + disk.name + "-upper");
  run_ok({"cp", "--sparse=always", folder_ / overlays[overlays.size() - 2], upper});
  qemu_img({"rebase", "-u", "-f", "qcow2", "-b", copy.path, "-F", copy.format, upper});
  copy.path = upper;
  copy.format = "qcow2";
  return copy;
}

json::value GuestSession::took(const std::string& output, std::size_t log_before) {
  json::value result = json::parse(output);
  take_published();
  const Taken& taken = taken_.back();
  EXPECT_EQ(taken.point, result.at("point").as_string());
  const json::value& window = result.at("window");
  const double length = at_ms(window, "thaw-answered-us") - at_ms(window, "freeze-sent-us");
  const double agent = at_ms(window, "freeze-answered-us") - at_ms(window, "freeze-sent-us") +
                       at_ms(window, "thaw-answered-us") - at_ms(window, "thaw-sent-us");
  const double qemu = at_ms(window, "switch-answered-us") - at_ms(window, "switch-sent-us");
  own_.push_back(length - agent - qemu);
  const auto stall = longest_stall(guest_->operation_log(), log_before);
  std::cout << fmt::format(
      "  {:<18} {:<12} window {:6.1f} ms: agent {:6.1f}, QEMU {:5.1f}, nbdelta {:.3f}; the guest's "
      "longest stall {:6.1f} ms\n",
      taken.point, taken.consistency, length, agent, qemu, own_.back(),
      static_cast<double>(stall.count()) / 1000);
  return result;
}

void GuestSession::expect_point() {
  done_before_ = first_not_done(guest_->operations());
}

void GuestSession::take_published() {
  const std::uint64_t not_after = last_started(guest_->operations());
  for (const auto& entry : fs::directory_iterator(vm_folder())) {
    const std::string manifest = text_of_file(entry.path() / "manifest.json");
    const std::string point = entry.path().filename();
    if (manifest.empty() || !seen_.insert(point).second)
      continue;
    taken_.push_back(
        {.point = point,
         .done_before = done_before_,
         .not_after = not_after,
         .consistency = std::string(json::parse(manifest).at("consistency").as_string())});
  }
}

std::map<std::string, std::vector<std::string>> GuestSession::problems_of_points() {
  std::map<std::string, std::vector<std::string>> found;
  const auto operations = guest_->operations();
  for (const Taken& taken : taken_) {
    std::vector<std::string>& problems = found[taken.point];
    const auto add = [&](const std::vector<std::string>& more) {
      problems.insert(problems.end(), more.begin(), more.end());
    };
    const bool frozen = taken.consistency == "application";
    std::vector<std::string> blocks;
    for (const GuestDisk& each : disks_) {
      const std::string raw = folder_ / (each.name + ".restored");
      qemu_img({"convert", "-f", "qcow2", "-O", "raw",
                fmt::format("{}/{}/{}.qcow2", vm_folder(), taken.point, each.name), raw});
      if (each.use == Use::blocks)
        blocks.push_back(raw);
      else
        add(frozen ? check_frozen_file_system(raw) : check_file_system(raw));
    }
    add(check_instant(blocks, operations, taken.done_before, taken.not_after));
  }
  return found;
}

void GuestSession::check_points() {
  for (const auto& [point, problems] : problems_of_points())
    EXPECT_THAT(problems, IsEmpty()) << point;
}

void GuestSession::check_images() {
  std::vector<std::string> blocks;
  for (const GuestDisk& each : disks_) {
    const std::string raw = folder_ / (each.name + ".final");
    const GuestDisk last = current(each);
    qemu_img({"convert", "-f", last.format, "-O", "raw", last.path, raw});
    if (each.use == Use::blocks)
      blocks.push_back(raw);
    else
      EXPECT_THAT(check_file_system(raw), IsEmpty()) << each.name;
  }
  EXPECT_THAT(check_nothing_lost(blocks, guest_->operations()), IsEmpty());
}

GuestDisk GuestSession::current(const GuestDisk& disk) const {
  GuestDisk result = disk;
  std::ifstream file(folder_ / ("nbdelta-current-" + disk.name + "." + disk.format));
  if (std::getline(file, result.path))
    result.format = "qcow2";
  else
    result.path = disk.path;
  return result;
}

void GuestSession::start_without_guest() {
  std::vector<GuestDisk> disks;
  for (const GuestDisk& each : disks_)
    disks.push_back(current(each));
  fs::create_directory(folder_ / "again");
  guest_.emplace(folder_ / "again", disks, GuestOptions{.extra_arguments = {"-S"}});
  while (!fs::exists(guest_->qmp()) && guest_->running())
    std::this_thread::sleep_for(5ms);
}

std::vector<std::string> GuestSession::leftovers() const {
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(folder()))
    if (entry.path().filename().string().starts_with("nbdelta-"))
      found.push_back(entry.path().filename());
  return found;
}

}  // namespace nbdelta::testing
