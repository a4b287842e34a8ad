#include "tests/guest/guest.hpp"

#include <fmt/format.h>
#include <signal.h>

#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cerrno>
#include <filesystem>
#include <span>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "base/file.hpp"
#include "tests/guest/stamp.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/qemu.hpp"

namespace nbdelta::testing {
namespace {

namespace json = boost::json;

constexpr const char* kGuestFolder = NBDELTA_GUEST_FOLDER;  // of vmlinuz and initramfs.cpio.gz
constexpr std::chrono::milliseconds kPollInterval{20};
// Without cmpxchg16b: under QEMU 7.2's TCG a kernel 6.12 that uses it panics in kmalloc with
// nonsense in EFLAGS.
constexpr const char* kProcessor = "qemu64,-cx16";

std::string text_of(const std::string& path) {
  if (!std::filesystem::exists(path))
    return {};
  const std::vector<std::byte> bytes = read_file(path);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void add(Command& command, const Command& more) {
  command.insert(command.end(), more.begin(), more.end());
}

/// A file's name within an option of QEMU, where a comma ends it unless doubled.
std::string option_value(std::string_view text) {
  std::string result;
  for (const char c : text)
    result.append(c == ',' ? 2 : 1, c);
  return result;
}

Command disk_arguments(const GuestDisk& disk) {
  const std::string device = "virtio-blk-pci,drive=" + disk.name + ",id=" + disk.name;
  if (disk.attach == GuestDisk::Attach::drive)
    return {"-drive",
            fmt::format("if=none,id={},format={},discard=unmap,file={}", disk.name, disk.format,
                        option_value(disk.path)),
            "-device", device};
  const json::value node{{"driver", disk.format},
                         {"node-name", disk.name},
                         {"discard", "unmap"},
                         {"file", json::value{{"driver", "file"},
                                              {"node-name", disk.name + "-file"},
                                              {"discard", "unmap"},
                                              {"filename", disk.path}}}};
  return {"-blockdev", json::serialize(node), "-device", device};
}

/// A port of the guest on a character device `chardev`, which is made here too.
Command port_arguments(const std::string& id, const std::string& chardev, const std::string& name) {
  return {"-chardev", chardev + ",id=" + id, "-device",
          fmt::format("virtserialport,chardev={},name={}", id, name)};
}

std::string kernel_command_line(const std::vector<GuestDisk>& disks, const GuestOptions& options) {
  std::string file_systems;
  std::string blocks;
  char letter = 'a';
  for (const GuestDisk& disk : disks) {
    std::string& list = disk.use == GuestDisk::Use::file_system ? file_systems : blocks;
    list += (list.empty() ? "vd" : ",vd");
    list += letter++;
  }
  // panic=-1: goes off at once (-no-reboot). The rest spares the boot what a test guest needs not.
  std::string line = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr";
  line += fmt::format(" nbdelta.rate={} nbdelta.seed={} nbdelta.area={} nbdelta.paused={}",
                      options.rate, options.seed, options.area, options.start_paused ? 1 : 0);
  if (!file_systems.empty())
    line += " nbdelta.fs=" + file_systems;
  if (!blocks.empty())
    line += " nbdelta.blocks=" + blocks;
  if (options.agent)
    line += " nbdelta.agent=1";
  return line;
}

}  // namespace

void make_disk(const GuestDisk& disk, std::uint64_t size) {
  create_image(disk.path, disk.format, size);
  if (disk.use != GuestDisk::Use::file_system)
    return;
  const std::string raw = disk.path + ".ext4";
  create_image(raw, "raw", size);
  run_ok({"mkfs.ext4", "-q", "-F", raw});
  qemu_img({"convert", "-n", "-f", "raw", "-O", disk.format, raw, disk.path});
  std::filesystem::remove(raw);
}

Guest::Guest(std::string folder, const std::vector<GuestDisk>& disks, const GuestOptions& options)
    : folder_(std::move(folder)) {
  const std::string files = kGuestFolder;
  const std::string here = option_value(folder_);
  Command command{"qemu-system-x86_64",
                  "-nodefaults",
                  "-no-user-config",
                  "-no-reboot",
                  "-display",
                  "none",
                  "-accel",
                  "tcg",
                  "-cpu",
                  kProcessor,
                  "-m",
                  "256",
                  "-kernel",
                  files + "/vmlinuz",
                  "-initrd",
                  files + "/initramfs.cpio.gz",
                  "-append",
                  kernel_command_line(disks, options),
                  "-chardev",
                  "file,id=console,path=" + here + "/console",
                  "-serial",
                  "chardev:console",
                  "-chardev",
                  "socket,id=qmp,server=on,wait=off,path=" + here + "/qmp.sock",
                  "-mon",
                  "chardev=qmp,mode=control",
                  "-device",
                  "virtio-serial-pci"};
  add(command, port_arguments("log", "file,path=" + here + "/operations", kLogPort));
  add(command, port_arguments("control", "socket,server=on,wait=off,path=" + here + "/control.sock",
                              kControlPort));
  if (options.agent)
    add(command, port_arguments("agent", "socket,server=on,wait=off,path=" + here + "/agent.sock",
                                "org.qemu.guest_agent.0"));
  for (const GuestDisk& disk : disks)
    add(command, disk_arguments(disk));
  add(command, options.extra_arguments);
  qemu_ = std::make_unique<Background>(std::move(command));
}

void Guest::wait_until_ready(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (text_of(folder_ + "/console").find(kReadyMessage) == std::string::npos) {
    if (!running())
      fail(EIO, "the guest has ended before it was ready:\n{}", console());
    if (std::chrono::steady_clock::now() >= deadline)
      fail(ETIMEDOUT, "the guest is not ready after {} ms:\n{}", timeout.count(), console());
    std::this_thread::sleep_for(kPollInterval);
  }
}

void Guest::kill() {
  qemu_->signal(SIGKILL);
  if (!qemu_->wait(kDefaultTimeout))
    fail(ETIMEDOUT, "QEMU, process {}: SIGKILL does not end it", pid());
}

void Guest::shut_down(std::chrono::milliseconds timeout) {
  control("poweroff", timeout);
  if (!qemu_->wait(timeout))
    fail(ETIMEDOUT, "the guest does not go off within {} ms:\n{}", timeout.count(), console());
}

void Guest::control(std::string_view command, std::chrono::milliseconds timeout) {
  if (!control_)
    control_.emplace(folder_ + "/control.sock");
  control_->send(std::string(command) + "\n");
  const std::string answer = control_->read_line(timeout);
  if (answer != "ok")
    fail(EINVAL, "the guest's writer, told to '{}': {}", command, answer);
}

std::vector<LoggedOperation> Guest::operations() const {
  return parse_operation_log(operation_log());
}

std::string Guest::operation_log() const {
  return text_of(folder_ + "/operations");
}

std::string Guest::console() const {
  return text_of(folder_ + "/console") + qemu_->err();
}

}  // namespace nbdelta::testing
