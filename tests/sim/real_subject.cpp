#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <csignal>
#include <cstdlib>
#include <map>
#include <regex>
#include <sstream>
#include <thread>

#include "base/error.hpp"
#include "base/file.hpp"
#include "image/image_lock.hpp"
#include "tests/sim/subject.hpp"
#include "tests/support/line_socket.hpp"
#include "tests/support/process.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;

constexpr auto kPatience = 20s;
constexpr const char* kWrite = "\"id\": \"a write of the guest's\"";  // as QEMU writes it

/// $NBDELTA_QEMU: words, as in "chroot /trixie qemu-system-x86_64".
Command qemu_command() {
  const char* given = std::getenv("NBDELTA_QEMU");
  if (given == nullptr)
    return {find_program("qemu-system-x86_64")};
  std::istringstream words(given);
  return {std::istream_iterator<std::string>(words), std::istream_iterator<std::string>()};
}

/// A file system of its own.
class Storage {
 public:
  Storage(std::string folder, const std::string& size) : folder_(std::move(folder)) {
    run_ok({"mount", "-t", "tmpfs", "-o", "size=" + size, "none", folder_});
  }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  ~Storage() { run({"umount", "--lazy", folder_}); }

 private:
  std::string folder_;
};

class RealSubject final : public Subject {
 public:
  std::string folder() const override { return folder_.path(); }

  void create_image(const std::string& name, const std::string& format, std::uint64_t size,
                    const std::optional<SubjectDisk>& backing) override {
    if (backing)
      create_overlay(folder_ / name, folder_ / backing->image, backing->format, size);
    else
      testing::create_image(folder_ / name, format, size);
  }

  void limit_storage(const std::string& size) override { storage_.emplace(folder_.path(), size); }

  void fill_storage() override {
    const File rest = File::open(folder_ / "rest", O_WRONLY | O_CREAT);
    const std::vector<std::byte> bytes(4096, std::byte{1});
    try {
      for (std::uint64_t at = 0;; at += bytes.size())
        rest.write_at(bytes, at);
    } catch (const Error& error) {
      if (error.error_number() != ENOSPC)
        throw;
    }
  }

  void start(const std::vector<SubjectDisk>& disks) override {
    const std::string socket = folder_ / "qmp";
    Command command = qemu_command();
    for (const char* each :
         {"-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "16", "-S", "-qmp"})
      command.emplace_back(each);
    command.push_back(fmt::format("unix:{},server=on,wait=off", socket));
    for (const SubjectDisk& disk : disks) {
      if (disk.by_drive)
        command.insert(command.end(),
                       {"-drive", fmt::format("if=none,id={},format={},file={}", disk.name,
                                              disk.format, folder_ / disk.image)});
      else
        command.insert(
            command.end(),
            {"-blockdev",
             fmt::format("driver={0},node-name={1},file.driver=file,file.node-name={1}-f,"
                         "file.filename={2}",
                         disk.format, disk.name, folder_ / disk.image)});
      command.insert(command.end(),
                     {"-device", fmt::format("virtio-blk-pci,id={0},drive={0}", disk.name)});
    }
    qemu_.emplace(command);
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    for (socket_.reset(); !socket_;) {
      try {
        socket_.emplace(socket);
      } catch (const Error&) {
        if (!qemu_->running() || std::chrono::steady_clock::now() > deadline)
          fail(ECONNREFUSED, "QEMU does not listen: {}", qemu_->err());
        std::this_thread::sleep_for(10ms);
      }
    }
  }

  void send(std::string bytes) override { socket_->send(bytes); }

  std::string receive() override {
    while (true) {
      std::string line = socket_->read_line(kPatience);
      if (line.find(kWrite) == std::string::npos)
        return line;
    }
  }

  void join() override { other_.emplace(folder_ / "qmp"); }

  bool greeted() override {
    try {
      other_->read_line(kSoon);
      return true;
    } catch (const Error& error) {
      if (error.error_number() != ETIMEDOUT)
        throw;
      return false;
    }
  }

  void leave() override {
    socket_ = std::move(other_);
    other_.reset();
  }

  /// As the device does it: requests of a drained device wait, and QEMU's monitor must not.
  void write(const std::string& disk, std::uint64_t offset, std::uint64_t length,
             unsigned pattern) override {
    qemu_io(disk, fmt::format("aio_write {} {} {}",
                              pattern == 0 ? "-z" : fmt::format("-P {}", pattern), offset, length));
  }

  void flush(const std::string& disk) override { qemu_io(disk, "flush"); }

  void pause(std::chrono::milliseconds time) override { std::this_thread::sleep_for(time); }

  std::size_t written() override {
    const std::string out = qemu_->out();
    std::size_t count = 0;
    for (std::size_t at = 0; (at = out.find("\nwrote ", at)) != std::string::npos; ++at)
      ++count;
    return count + (out.starts_with("wrote ") ? 1 : 0);
  }

  void lock(const std::string& image, bool locked) override {
    if (!locked) {
      locks_.erase(image);
      return;
    }
    File file = File::open(folder_ / image, O_RDONLY);
    image::lock_image(file, image::Access::read);
    locks_.emplace(image, std::move(file));
  }

  std::string show(const std::string& name, const std::string& format) override {
    const std::string path = folder_ / name;
    const File file = File::open(path, O_RDONLY);
    const auto pattern_at = [&](std::uint64_t offset) {
      std::byte pattern{};  // stays where the file ends before
      file.read_at(std::span(&pattern, 1), offset);
      return fmt::format(" {}", std::to_integer<unsigned>(pattern));
    };
    std::string shown;
    if (format == "raw") {
      for (std::uint64_t at = 0; at < file.size(); at += kCluster)
        shown += pattern_at(at);
      return shown;
    }
    const std::string layer =
        json::serialize(json::object{{"driver", format},
                                     {"backing", nullptr},
                                     {"file", {{"driver", "file"}, {"filename", path}}}});
    const json::value map = json::parse(qemu_img({"map", "-U", "--output=json", "json:" + layer}));
    for (const json::value& value : map.as_array()) {
      const json::object& extent = value.as_object();
      const auto length = extent.at("length").to_number<std::uint64_t>();
      const bool here = extent.at("present").as_bool();
      for (std::uint64_t at = 0; at < length; at += kCluster)
        shown += !here ? " ."
                 : extent.at("zero").as_bool()
                     ? " z"
                     : pattern_at(extent.at("offset").to_number<std::uint64_t>() + at);
    }
    const json::value info =
        json::parse(qemu_img({"info", "-U", "--output=json", "-f", format, path}));
    const json::object& image = info.as_object();
    if (const auto* backing = image.if_contains("backing-filename"))
      shown += fmt::format(" over {} ({})", std::string(backing->as_string()),
                           std::string(image.at("backing-filename-format").as_string()));
    const json::object& data = image.at("format-specific").at("data").as_object();
    if (const auto* bitmaps = data.if_contains("bitmaps"))
      for (const json::value& bitmap : bitmaps->as_array()) {
        shown += " " + std::string(bitmap.at("name").as_string());
        for (const json::value& flag : bitmap.at("flags").as_array())
          shown += " " + std::string(flag.as_string());
      }
    return shown;
  }

  void kill() override {
    qemu_->signal(SIGKILL);
    qemu_->wait(kPatience);
    qemu_.reset();
    socket_.reset();
  }

  void quit() override {
    qemu_->signal(SIGTERM);
    qemu_->wait(kPatience);
    qemu_.reset();
    socket_.reset();
  }

 private:
  void qemu_io(const std::string& disk, const std::string& command) {
    socket_->send(
        fmt::format(R"({{"execute":"human-monitor-command",{},"arguments":{{"command-line":)"
                    R"("qemu-io -d /machine/peripheral/{}/virtio-backend \"{}\""}}}})"
                    "\n",
                    kWrite, disk, command));
  }

  TempFolder folder_;
  std::optional<Storage> storage_;
  std::optional<Background> qemu_;
  std::optional<LineSocket> socket_;
  std::optional<LineSocket> other_;
  std::map<std::string, File> locks_;
};

}  // namespace

std::unique_ptr<Subject> real_subject() {
  return std::make_unique<RealSubject>();
}

unsigned real_major_version() {
  Command command = qemu_command();
  command.emplace_back("--version");
  const std::string text = run_ok(command);
  std::smatch found;
  if (!std::regex_search(text, found, std::regex("version ([0-9]+)\\.")))
    fail(EINVAL, "no version of QEMU: {}", text);
  return static_cast<unsigned>(std::stoul(found[1]));
}

}  // namespace nbdelta::testing
