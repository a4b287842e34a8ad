#include "tests/sim/freeze/measured_windows.hpp"

#include <fmt/format.h>

#include <boost/json/parse.hpp>
#include <chrono>
#include <filesystem>
#include <thread>

#include "client/repository/manifest.hpp"
#include "tests/client/client_run.hpp"
#include "tests/client/session/processes.hpp"
#include "tests/guest/guest.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kDiskSize = std::uint64_t{96} << 20;

struct BackupResult {
  client::repository::Window window;
  std::string consistency;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("window", window);
    visit("consistency", consistency);
  }
};

}  // namespace

MeasuredLoad measure(const WriterLoad& load, unsigned count) {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "guest");
  std::vector<GuestDisk> disks;
  for (std::int64_t i = 0; i < load.disks; ++i) {
    const std::string name = fmt::format("disk{}", i);
    disks.push_back({.path = folder / (name + ".qcow2"),
                     .format = "qcow2",
                     .use = GuestDisk::Use::file_system,
                     .attach = GuestDisk::Attach::blockdev,
                     .name = name});
    make_disk(disks.back(), kDiskSize);
  }
  Guest guest(folder / "guest", disks, {.rate = static_cast<unsigned>(load.rate)});
  guest.wait_until_ready();
  MeasuredLoad measured{load, {}};
  for (unsigned i = 0; i <= count; ++i) {
    std::this_thread::sleep_for(1s + 300ms * (i % 5));
    const boost::json::value json = boost::json::parse(
        run_ok(nbdelta_command({"backup", "--qmp", guest.qmp(), "--agent", guest.agent(), "--vm",
                                "vm", "--to", folder / "repo", "--json"}),
               {}, 180s));
    BackupResult result;
    qapi::from_json(json, result, "nbdelta backup");
    const client::repository::Window& window = result.window;
    if (result.consistency != "application")
      fail(EIO, "the guest was not frozen");
    if (i == 0)
      continue;
    measured.windows.push_back({.freeze_us = *window.freeze_answered_us - *window.freeze_sent_us,
                                .switch_us = window.switch_us(),
                                .thaw_us = *window.thaw_answered_us - *window.thaw_sent_us,
                                .length_us = window.length_us()});
  }
  guest.kill();
  return measured;
}

}  // namespace nbdelta::testing
